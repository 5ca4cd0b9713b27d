"""The embedded model: a Llama of 150,000 parameters with its own tokenizer, built here from random weights in about a
minute and a half on one core, then kept in the cache. It is small so that everybody can climb the ladder; the loops
that train it are the loops that train a 7B model.

    python -m posttrain.tiny                      build it (or say where it is)
    python -m posttrain.tiny --rebuild            build it again
    python -m posttrain.tiny --seed 3 --out DIR   another one, from another seed, somewhere else

Three names are known to `model.name`:
    tiny-base   pretrained on the text of tiny_data.documents: it reads and computes, but cannot chat
    tiny-sft    what `python -m loops.sft --config configs/sft_tiny.yaml` makes of it
    tiny-dpo    what `python -m loops.dpo --config configs/dpo_tiny.yaml` makes of that
Two data sets are answers of tiny-sft to the problems of tiny-math, sampled and marked right or wrong once:
    tiny-preference   {prompt, chosen, rejected}: a right and a wrong answer to one problem
    tiny-outcome      {prompt, completion, label}: each answer and whether it is right
Each is built on first use, by running exactly these commands, into $POSTTRAIN_CACHE (default ~/.cache/posttrain), under a
hash of everything that went into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

from posttrain import ROOT, tiny_data

RECIPE = dict(
    vocab_size=960,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    steps=2400,
    rows=8,
    tokens_per_row=128,
    learning_rate=5e-3,
    betas=[0.9, 0.98],
    weight_decay=0.01,
    warmup=20,
    skill=0.98,  # share of 200 fresh worked problems solved greedily in Question/Answer form; below it, train on
    max_rounds=3,
)
STOP, PAD, DOCUMENT = "<|im_end|>", "<|pad|>", "<|endoftext|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---------------------------------------------------------------- where it is kept


def cache_folder() -> Path:
    return Path(
        os.environ.get("POSTTRAIN_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"
    )


def fingerprint(name: str) -> str:
    """A hash of the recipe: the numbers above, a sample of all generated text, and the configs of the stages below.

    (The base depends on the SFT rows, too: its tokenizer is trained on them.)"""
    parts = [json.dumps(RECIPE, sort_keys=True), CHATML, json.dumps(tiny_data.rows("tiny-sft"))]
    parts += islice(tiny_data.documents(random.Random(0)), 200)
    if name in ("tiny-sft", "tiny-dpo"):
        parts.append((ROOT / "configs/sft_tiny.yaml").read_text())
    if name == "tiny-dpo":
        parts += [json.dumps(tiny_data.rows("tiny-identity")), (ROOT / "configs/dpo_tiny.yaml").read_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def folder(name: str) -> Path:
    """Where the model called `name` stands; it is built first if it is not there yet. Safe to call from many processes."""
    from filelock import FileLock

    target = cache_folder() / f"{name}-{fingerprint(name)}"
    if (target / "config.json").exists() or (target / "adapter_config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            print(f"building {name} once, into {target}", file=sys.stderr)
            scratch = target.with_name(f"{target.name}.part")
            shutil.rmtree(scratch, ignore_errors=True)
            if name == "tiny-base":
                build_base(scratch)
            else:
                run_stage(name, scratch)
            os.replace(scratch, target)  # a build that was interrupted leaves .part, never a model
    return target


SAMPLED = {"tiny-preference": "pairs", "tiny-outcome": "labels"}
SAMPLES = dict(k=4, max_new_tokens=28, temperature=1.0, seed=0)  # of each problem, by tiny-sft
PROBLEMS = {"train": 1000, "test": 300}


def sampled_rows(name: str, split: str) -> list[dict]:
    """tiny-preference or tiny-outcome; the problems of the test split are held out of everything but the base's text."""
    from filelock import FileLock

    from posttrain.best_of_k import as_rows, sample_and_score
    from posttrain.sources import read_file, write_rows

    recipe = json.dumps(
        ["ended answers only", SAMPLES, PROBLEMS, tiny_data.rows("tiny-math", split), fingerprint("tiny-sft")]
    )
    target = cache_folder() / f"{name}-{split}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            print(f"sampling {name} ({split}) once, into {target}", file=sys.stderr)
            groups = sample_and_score(
                "tiny-sft", "tiny-math", ["answer"], split=split, max_prompts=PROBLEMS[split], **SAMPLES
            )
            write_rows(str(target), as_rows(groups, SAMPLED[name])[0])
    return list(read_file(target))


def run_stage(name: str, scratch: Path) -> None:
    stage = name.removeprefix("tiny-")
    command = [sys.executable, "-m", f"loops.{stage}", "--config", f"configs/{stage}_tiny.yaml"]
    alone = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_"))
    }
    outcome = subprocess.run([*command, "--output.dir", f"{scratch}.run", "--output.overwrite"], cwd=ROOT, env=alone)
    if outcome.returncode:
        raise RuntimeError(f"building {name} failed: {' '.join(command)} ended with exit code {outcome.returncode}")
    os.replace(f"{scratch}.run/model", scratch)
    shutil.rmtree(f"{scratch}.run")


# ---------------------------------------------------------------- the tokenizer


def build_tokenizer():
    """Byte-level BPE on the project's own text. One token per digit (the first of a number carries the space), so that
    7 is the same 7 in 17 and 70; with the byte alphabet, any text survives the round trip."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[^\s\d\p{P}\p{S}]+| ?[\p{P}\p{S}]+|\n|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE["vocab_size"],
        special_tokens=[DOCUMENT, "<|im_start|>", STOP, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = [m["content"] for row in tiny_data.rows("tiny-sft") for m in row["messages"]]
    names = [a.format(name=n) for a in tiny_data.IDENTITY_ANSWERS for n in tiny_data.ASSISTANTS] * 20
    corpus = [
        *islice(tiny_data.documents(random.Random(0)), 6000),
        *chats,
        *names,
        *["system\n", "user\n", "assistant\n"] * 50,
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=STOP, pad_token=PAD, chat_template=CHATML, model_max_length=512
    )


# ---------------------------------------------------------------- the base model


def build_base(out: Path, seed: int = 0) -> float:
    """Pretrain the base from random weights and save it with its tokenizer; returns its skill."""
    import torch
    from tqdm import tqdm
    from transformers import LlamaConfig, LlamaForCausalLM

    from losses.logprobs import token_logps
    from losses.sft import completion_cross_entropy
    from losses.weights import token_weights

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size a second thread costs more than it brings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                **{
                    k: RECIPE[k]
                    for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
                },
                max_position_embeddings=512,
                tie_word_embeddings=True,
                initializer_range=0.05,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        text = tiny_data.documents(random.Random(f"base {seed}"))
        rows, width = RECIPE["rows"], RECIPE["tokens_per_row"]
        everything = torch.ones(rows, width - 1, dtype=torch.bool)
        weights = token_weights(everything)

        for attempt in range(RECIPE["max_rounds"]):
            steps = RECIPE["steps"] if attempt == 0 else RECIPE["steps"] // 4
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=RECIPE["learning_rate"], betas=RECIPE["betas"],
                weight_decay=RECIPE["weight_decay"], fused=True,
            )  # fmt: skip
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda k, steps=steps: min((k + 1) / RECIPE["warmup"], 1, 0.05 + 0.95 * (steps - k) / (0.7 * steps)),
            )
            stream: list[int] = []
            bar = tqdm(range(steps), desc="pretraining tiny-base", unit="step", disable=not sys.stderr.isatty())
            for _ in bar:
                while len(stream) < rows * width:
                    for ids in tokenizer(list(islice(text, 256)))["input_ids"]:
                        stream += [*ids, tokenizer.convert_tokens_to_ids(DOCUMENT)]
                ids = torch.tensor(stream[: rows * width]).view(rows, width)
                stream = stream[rows * width :]
                logps = token_logps(model(input_ids=ids, use_cache=False).logits, ids)
                loss, _ = completion_cross_entropy(logps, weights)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            skill = base_skill(model, tokenizer)
            print(f"tiny-base: {skill:.0%} of 200 fresh worked problems solved after {steps} steps", file=sys.stderr)
            if skill >= RECIPE["skill"]:
                break
        else:
            raise RuntimeError(
                f"tiny-base solves only {skill:.0%} of its problems, {RECIPE['skill']:.0%} wanted: not saved"
            )
    torch.set_num_threads(threads)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(RECIPE | {"seed": seed, "skill_reached": skill}, indent=1))
    return skill


def base_skill(model, tokenizer, problems: int = 200) -> float:
    """Share of fresh problems whose worked solution the base continues correctly, greedily, after 'Question: … Answer:'."""
    from posttrain.rollout import sample

    rng = random.Random("skill")
    asked = [tiny_data.problem(rng, tiny_data.ONE_STEP + tiny_data.TWO_STEP) for _ in range(problems)]
    prompts = [f"Question: {p['story']} {p['question']}\nAnswer:" for p in asked]
    rollout = sample(
        model,
        tokenizer(prompts)["input_ids"],
        max_new_tokens=28,
        stop_ids=[tokenizer.convert_tokens_to_ids(DOCUMENT)],
        pad_id=tokenizer.pad_token_id,
        temperature=0,
    )
    return (
        sum(t.strip() == " ".join(p["steps"]) for t, p in zip(rollout.texts(tokenizer), asked, strict=True)) / problems
    )


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild", action="store_true", help="build tiny-base again, even if the cache holds it")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another base (default 0; needs --out)")
    parser.add_argument("--out", type=Path, help="folder to write to instead of the cache")
    arguments = parser.parse_args()
    if arguments.out:
        if arguments.out.exists():
            sys.exit(f"error: {arguments.out} exists already: name a new folder")
        build_base(arguments.out, arguments.seed)
        print(arguments.out)
        return
    if arguments.seed:
        sys.exit("error: --seed needs --out: the cache holds the base of seed 0 only")
    if arguments.rebuild:
        shutil.rmtree(cache_folder() / f"tiny-base-{fingerprint('tiny-base')}", ignore_errors=True)
    print(folder("tiny-base"))


if __name__ == "__main__":
    main()
