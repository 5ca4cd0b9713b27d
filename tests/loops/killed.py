"""Run by test_resume.py in a process of its own: train, be killed by SIGKILL, resume, and compare with the run that was not.

    python killed.py FOLDER TRIALS        TRIALS in JSON: {case: [model, [KILL, ...]]}; several share the imports
    KILL: step:7   when step 7 has been logged        op:3   before the third file operation of the first save
          random:1 at a random moment (seed 1) of the whole run, loading and saving included

Each run is a fork of this process, which has imported everything and computed nothing: a trial takes a second, not ten."""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import matplotlib.pyplot
import peft
import torch

from posttrain import ROOT

sys.path.insert(0, str(Path(__file__).parent))
from kit import even_tokens, right_or_wrong, tiny_config
from two_processes import DPO, GRPO, KTO, SFT

from loops import distill, dpo, grpo, kto, ppo, reward, sft, simpo
from posttrain.config import load
from posttrain.run import checkpoint_files, ending, training

NOT_THE_SAME = {"seconds", "tokens_per_second", "memory_gib"}  # of a metrics row
STEPS = 10
SHARED = {
    "training.max_steps": STEPS, "training.batch_size": 4, "training.micro_batch_size": 2, "training.learning_rate": 1e-2,
    "training.schedule": "linear", "training.warmup_steps": 2, "training.save_every": 3, "training.device": "cpu", "training.cpu_threads": 1,
    "output.samples": 1,
}  # fmt: skip
RL = {"training.batch_size": None}
HELD_OUT = {"data.validation_split": 0.2, "training.eval_every": 2}
LORA = {"model.adapter": "lora"}
MEASURED = {f"evaluation.{key}": value for key, value in {
    "accuracy.data": str(ROOT / "tests/data/word_problems.jsonl"), "accuracy.reward": "kit:even_tokens", "accuracy.samples": 2,
    "accuracy.max_rows": 3, "accuracy.max_new_tokens": 6, "perplexity.data": str(ROOT / "tests/data/chats.jsonl"),
}.items()}  # fmt: skip
CASES = {
    "sft": (sft, SFT, {}),  # gpt2: dropout 0.1
    "sft-lora": (sft, SFT, LORA | {"model.lora.dropout": 0.1}),
    "sft-8bit-optimizer": (sft, SFT, {"training.optimizer": "adamw_8bit", "data.max_length": 200}),
    "sft-packed": (sft, SFT, {"training.packing": True, "data.max_length": 90}),
    "sft-stream": (sft, None, {"data.name": str(ROOT / "tests/data/chats.jsonl"), "data.streaming": True}),
    "sft-best": (sft, SFT, HELD_OUT | {"training.best_metric": "validation_loss", "training.keep_checkpoints": 1}),
    "sft-measured": (sft, SFT, {"evaluation.suites": ["accuracy", "perplexity"], "evaluation.every": 2, **MEASURED}),
    "dpo": (dpo, DPO, {"dpo.precompute": True, "model.adapter": "none"}),
    "dpo-lora": (dpo, DPO, LORA),
    "simpo": (simpo, DPO, {"simpo.loss": "orpo"}),
    "kto": (kto, KTO, HELD_OUT | {"training.batch_size": 3}),
    "distill": (distill, SFT, {"distill.on_policy": 0.5, "distill.max_new_tokens": 6}),
    "reward": (reward, DPO, HELD_OUT),
    "reward-lora": (reward, DPO, HELD_OUT | LORA),
    "grpo": (grpo, GRPO, RL | {"grpo.prompts_per_step": 2, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.minibatches": 2, "grpo.inner_epochs": 2}),
    "grpo-dynamic": (grpo, GRPO, RL | {"grpo.prompts_per_step": 2, "grpo.group_size": 4, "grpo.max_new_tokens": 6, "grpo.minibatches": 2,
                                       "grpo.dynamic_sampling": True, "grpo.max_resamples": 2, "grpo.overlong_cache": 2,
                                       "grpo.importance_weights": "masked"}),
    "grpo-teacher": (grpo, GRPO, RL | {"grpo.prompts_per_step": 4, "grpo.group_size": 2, "grpo.max_new_tokens": 6, "grpo.minibatches": 2,
                                       "grpo.advantage": "teacher", "grpo.advantage_scale": "none", "grpo.reward": None}),
    "ppo": (ppo, GRPO, RL | HELD_OUT | {"ppo.prompts_per_step": 4, "ppo.max_new_tokens": 6, "ppo.minibatches": 2, "ppo.inner_epochs": 2,
                                        "ppo.kl_coef": 0.1, "ppo.kl_target": 0.01}),
    "ppo-shared": (ppo, GRPO, RL | HELD_OUT | LORA | {"ppo.prompts_per_step": 4, "ppo.max_new_tokens": 6, "ppo.minibatches": 2,
                                                      "ppo.critic": "shared", "ppo.inner_epochs": 2}),
}  # fmt: skip


def train(case: str, model: str, out: Path, resume: bool) -> None:
    loop, rows, changes = CASES[case]
    method = case.split("-")[0]
    own = {k: v for k, v in (SHARED | changes).items() if v is not None or k == "grpo.reward"}
    if case in ("distill", "grpo-teacher"):
        own[f"{method}.teacher"] = f"{model}-teacher"
    config = load(
        ROOT / f"configs/{tiny_config(method)}.yaml",
        own | {"model.name": model, "output.dir": str(out), "resume": resume},
    )
    given = {"reward": right_or_wrong if "dynamic" in case else even_tokens} if method in ("grpo", "ppo") else {}
    if case == "grpo-teacher":
        given = {}
    loop.train(config, rows=rows and [dict(row) for row in rows], **given)


def forked(run) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: int) -> None:
    log = training.Run.log

    def logged(self, *told):
        row = log(self, *told)
        if self.step == step:
            die()
        return row

    training.Run.log = logged


def die_before_operation(number: int) -> None:
    """Of those by which a save reaches the disk."""
    left = [number]

    def counted(function):
        def wrapped(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                die()
            return function(*arguments, **named)

        return wrapped

    write = checkpoint_files.write

    def saving(*arguments):
        torch.save, os.fsync, os.replace = counted(torch.save), counted(os.fsync), counted(os.replace)
        checkpoint_files.write = write
        write(*arguments)

    checkpoint_files.write = saving


def killed(case: str, model: str, out: Path, how: str, duration: float) -> None:
    kind, _, value = how.partition(":")

    def run():
        if kind == "step":
            die_at_step(int(value))
        elif kind == "op":
            die_before_operation(int(value))
        train(case, model, out, resume=False)

    pid = forked(run)
    if kind == "random":
        time.sleep(random.Random(value).uniform(0, duration))
        os.kill(pid, signal.SIGKILL)
    code = ended(pid)
    assert code in ((-signal.SIGKILL,) if kind == "step" else (-signal.SIGKILL, 0)), (how, code)


def differences(a: Path, b: Path) -> list[str]:
    out = []
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (a, b)]
    same = [[{k: v for k, v in row.items() if k not in NOT_THE_SAME} for row in r] for r in rows]
    if same[0] != same[1]:
        out.append(f"metrics: {[x for x in same[0] if x not in same[1]][:1]} against {[x for x in same[1] if x not in same[0]][:1]}")  # fmt: skip
    for file in sorted((a / "model").glob("*.safetensors")):
        if file.read_bytes() != (b / "model" / file.name).read_bytes():
            out.append(f"{file.name} differs")
    last = checkpoint_files.all_steps(a)
    if last != checkpoint_files.all_steps(b):
        out.append(f"checkpoints {last} against {checkpoint_files.all_steps(b)}")
        return out
    for name in ("optimizer.pt", "weights.pt"):
        states = [checkpoint_files.read(checkpoint_files.path_of(f, last[-1]) / name) for f in (a, b)]
        if not same_state(*states):
            out.append(f"{name} differs")
    if (a / "samples.md").read_text() != (b / "samples.md").read_text():
        out.append("samples.md differs")
    return out


def same_state(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def trial(case: str, model: str, folder: Path, kills: list[str]) -> dict:
    straight, began = folder / "straight", time.perf_counter()
    assert ended(forked(lambda: train(case, model, straight, resume=False))) == 0
    duration = time.perf_counter() - began
    report = {}
    for how in kills:
        out = folder / how.replace(":", "_")
        killed(case, model, out, how, duration)
        at = checkpoint_files.all_steps(out)
        finished = (out / "model").exists()
        again = ended(forked(lambda out=out: train(case, model, out, resume=True))) if not finished else 0
        report[how] = {
            "checkpoints": at,
            "exit": again,
            "differences": differences(straight, out) if again == 0 else [],
        }
    return report


def main(folder: str, trials: str) -> None:
    torch.set_num_threads(1)
    if "random" not in trials:  # drawing takes most of a short run, and no kill of the others falls into it
        ending.plot_curves = lambda *told: None
    report = {}
    for case, (model, kills) in json.loads(trials).items():
        try:
            report[case] = trial(case, model, Path(folder) / case, kills)
        except Exception:
            report[case] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    assert matplotlib.pyplot and peft  # imported here, once, for the children
    main(*sys.argv[1:])
