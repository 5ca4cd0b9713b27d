"""The embedded names, and the command that makes each of them: run on first use, in a process of its own, then kept.

    tiny-base        python -m loops.pretrain --config configs/pretrain_tiny.yaml   reads and computes, cannot chat
    tiny-sft         python -m loops.sft --config configs/sft_tiny.yaml             from tiny-base
    tiny-dpo         python -m loops.dpo --config configs/dpo_tiny.yaml             from tiny-sft
    tiny-grpo        python -m loops.grpo --config configs/grpo_tiny.yaml           from tiny-dpo
    tiny-preference  python -m posttrain.curate best-of-k … --write pairs           right and wrong answers of tiny-sft
    tiny-outcome     python -m posttrain.curate best-of-k … --write labels          the same answers, each marked

They are kept in $POSTTRAIN_CACHE (default ~/.cache/posttrain), each under a hash of everything that went into it. The
other data sets (tiny-text, tiny-sft, tiny-identity, tiny-math) are made from a seed whenever they are asked for:
data.py.
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

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.tiny import data, tokenizer

MODELS = ("tiny-base", "tiny-sft", "tiny-dpo", "tiny-grpo")
SAMPLED = {"tiny-preference": "pairs", "tiny-outcome": "labels"}  # data sets, and how curate best-of-k is to write them
PROBLEMS = {"train": 1000, "test": 300}  # of tiny-math, that tiny-sft is asked


def cache_folder() -> Path:
    given = os.environ.get("POSTTRAIN_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain")


def command(name: str, split: str = "train") -> list[str]:
    """What makes it, without the place it is written to."""
    if name in MODELS:
        loop = "pretrain" if name == "tiny-base" else name.removeprefix("tiny-")
        return ["-m", f"loops.{loop}", "--config", f"configs/{loop}_tiny.yaml"]
    sampled = ["--k", "4", "--max-new-tokens", "28", "--write", SAMPLED[name]]
    asked = ["--prompts", "tiny-math", "--split", split, "--max-prompts", str(PROBLEMS[split])]
    return ["-m", "posttrain.curate", "best-of-k", "--model", "tiny-sft", *asked, "--score", "answer", *sampled]


def fingerprint(name: str, split: str = "train") -> str:
    """A hash of the command, of its config, of the text it reads, and of the model it starts from.

    (The base depends on the SFT rows, too: its tokenizer is trained on them.)"""
    parts = [" ".join(command(name, split))]
    if name in MODELS:
        parts.append((ROOT / command(name)[-1]).read_text())
    if name == "tiny-base":
        parts += [tokenizer.CHATML, str(tokenizer.VOCABULARY), json.dumps(data.rows("tiny-sft"))]
        parts += islice(data.documents(random.Random(0)), 200)
    elif name == "tiny-sft":
        parts.append(fingerprint("tiny-base"))
    elif name == "tiny-dpo":
        parts += [fingerprint("tiny-sft"), json.dumps(data.rows("tiny-identity"))]
    elif name == "tiny-grpo":
        parts += [fingerprint("tiny-dpo"), json.dumps(data.rows("tiny-math"))]
    else:
        parts += [fingerprint("tiny-sft"), json.dumps(data.rows("tiny-math", split))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def path_of(name: str, split: str = "train") -> Path:
    """Where it stands: a model's folder, a data set's file. Built first if it is not there; safe to call from many
    processes."""
    from filelock import FileLock

    stem = name if name in MODELS else f"{name}-{split}"
    target = cache_folder() / f"{stem}-{fingerprint(name, split)}{'' if name in MODELS else '.jsonl'}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                print(f"building {name} once, into {target}", file=sys.stderr)
                build(command(name, split), target)
    return target


def build(arguments: list[str], target: Path) -> None:
    """Run the command, and give what it made its name: a build that was interrupted leaves .part, never a model."""
    part = target.with_name(f"{target.stem}.part.jsonl" if target.suffix else f"{target.name}.part")
    where = ["--out", str(part)] if target.suffix else ["--output.dir", str(part), "--output.overwrite"]
    launchers = ("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")
    alone = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    outcome = subprocess.run([sys.executable, *arguments, *where], cwd=ROOT, env=alone, stdout=subprocess.DEVNULL)
    if outcome.returncode:
        raise UserError(
            f"building {target.name} failed: python {' '.join(arguments)} ended with {outcome.returncode}; why stands above"
        )
    if target.suffix:
        os.replace(part, target)
    else:
        os.replace(part / "model", target)
        shutil.rmtree(part)
