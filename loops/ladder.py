"""The whole ladder: tiny base → SFT → DPO → GRPO, each stage starting from the model of the one before.

    python -m loops.ladder --config configs/ladder_tiny.yaml
    python -m loops.ladder --config configs/ladder_tiny.yaml --seed 1 --output.dir outputs/ladder_seed1

1. The base: pretrained text only. Asked in chat format, it answers nothing right and never ends its turn.
2. SFT: two annotators teach it to chat. One shows the work, one answers at once, and it copies both habits.
3. DPO: it learns another name from pairs of answers. (Its LoRA adapter is merged before the next stage.)
4. GRPO: rewarded for right answers only, it finds out by itself that showing the work pays.
5. After each stage: the same held-out questions, one row of the table. At the end: report.md, scores.png
   and curves.png.

    python -m loops.ladder --config configs/ladder_tiny.yaml --ladder.beside ppo best_of_k

puts two other roads beside GRPO, each from the same DPO model: PPO with its critic, and SFT on the best of k sampled
answers.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("ladder") if __name__ == "__main__" else None

import time

import torch

from loops import dpo, grpo, ppo, sft
from posttrain import models
from posttrain.config import LadderConfig
from posttrain.config.loading import save as save_config
from posttrain.config.stages import stage_config
from posttrain.errors import UserError, clear_exit, writing
from posttrain.evaluation import ladder_report
from posttrain.evaluation.rungs import LONGEST, Rung, climb
from posttrain.rollouts.best_of_k import as_rows, sample_and_score
from posttrain.run import checkpoint_files, written
from posttrain.run.folder import refuse_strangers
from posttrain.run.training import left_as_found

FILES = ("config.yaml", "report.md", "rungs.json", "scores.png", "curves.png")
PROMPTS = 960  # best of k: as many prompts as GRPO asks in its 60 steps of 16


@left_as_found()
def run(config: LadderConfig) -> list[Rung]:
    folder, ladder = config.folder, config.ladder
    refuse_strangers(folder, names=FILES)
    for name in ("sft", "dpo", "grpo", *ladder.beside):
        refuse_strangers(folder / name)
    if checkpoint_files.latest(folder) is not None or (folder / "model").exists():
        raise UserError(f"{folder} holds a run of another loop: give another --output.dir")
    if (folder / "report.md").exists() and not config.output.overwrite:
        raise UserError(
            f"{folder} holds a finished ladder: give --output.overwrite to replace it, or another --output.dir"
        )
    with writing(folder):
        for name in FILES:
            written.remove(folder, name)  # an interrupted ladder must not show an older one's results
        written.note(folder, "config.yaml")
        save_config(config, folder / "config.yaml")
    torch.set_num_threads(1)  # a model of this size is slower on two
    sizes = {"problems": ladder.problems, "identity": ladder.identity, "k": ladder.pass_at}

    # ---- 1. The base ----------------------------------------------------------------------------------------------
    started = time.perf_counter()
    model, tokenizer, _ = models.load(ladder.base)  # built on first use
    rungs = [climb("base", model, tokenizer, None, **sizes, seconds=time.perf_counter() - started)]
    tell(rungs[-1])

    # ---- 2. to 4. The stages, each from the model of the one before -----------------------------------------------
    start, metrics = ladder.base, {}
    for name, loop in (("sft", sft), ("dpo", dpo), ("grpo", grpo)):
        started = time.perf_counter()
        result = loop.train(stage_config(config, name, start))
        seconds = time.perf_counter() - started
        start, metrics[name] = str(result.folder / "model"), result.metrics

        # ---- 5. The same held-out questions -----------------------------------------------------------------------
        before = model
        model, tokenizer, _ = models.load(start)  # from disk, an adapter merged: what the next stage gets
        rungs.append(climb(name, model, tokenizer, before, **sizes, seconds=seconds))
        tell(rungs[-1])

    # ---- Beside GRPO: other roads from the same model ------------------------------------------------------------
    fork = str(folder / "dpo" / "model")
    for name in ladder.beside:
        started = time.perf_counter()
        if name == "ppo":
            result = ppo.train(stage_config(config, name, fork))
        else:
            groups = sample_and_score(
                fork,
                "tiny-math",
                ["answer"],
                k=ladder.pass_at,
                max_prompts=PROMPTS,
                max_new_tokens=LONGEST,
                seed=ladder.seed,
            )
            result = sft.train(stage_config(config, name, fork), rows=as_rows(groups, "best", min_score=1.0)[0])
        seconds = time.perf_counter() - started
        model, tokenizer, _ = models.load(str(result.folder / "model"))
        rungs.append(climb(name, model, tokenizer, before, **sizes, seconds=seconds))
        tell(rungs[-1])

    print("\n" + ladder_report.table(rungs, config))
    with writing(folder):
        written.note(folder, *FILES)
        ladder_report.write(folder, config, rungs, metrics)
    print(f"\nread {folder}/report.md, look at {folder}/scores.png")
    return rungs


def tell(rung: Rung) -> None:
    print(
        f"[{rung.name}] problems {rung.arithmetic}, old name {rung.old_name.value:.2f}, new name {rung.new_name.value:.2f}"
    )


if __name__ == "__main__":
    with clear_exit():
        run(config)
