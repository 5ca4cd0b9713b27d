"""Fold a LoRA adapter into its base: one plain model folder that needs no peft, and answers like the adapter model.

    python -m posttrain.merge --adapter outputs/sft_qlora/model --out merged/

W' = W + (alpha / rank) · B A, layer by layer, in float32. Which W matters: an adapter that was trained on a 4-bit base
belongs to the weights that base computes with, so they are dequantised first (exact to rounding). On the original
weights (--onto original) it is another model: a smaller error than it sounds on real models, but not none, and it is
measured.

Before anything is kept, both models read the same prompts; the largest difference of a logit and the share of equal
argmaxes are printed, and above --threshold nothing is written unless --force.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

PROMPTS = [
    "Who are you?",
    "What is 7 + 5?",
    "Tell me a short story about a lamp.",
    "Wie heißt die Hauptstadt von Italien?",
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="the adapter, e.g. outputs/dpo/model")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the full model goes; must not exist yet")
    parser.add_argument(
        "--onto",
        choices=["auto", "dequantized", "original"],
        default="auto",
        help="the base's weights: auto takes those the adapter was trained on (dequantized after a quantised run)",
    )
    parser.add_argument(
        "--quantization",
        choices=["auto", "none", "8bit", "4bit"],
        default="auto",
        help="how the base was stored in training; auto: what the run noted beside the adapter, else none",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the saved weights"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="largest |Δlogit| allowed, as a share of the largest |logit|; default 1e-3, with 16-bit or 8-bit weights 0.05",
    )
    parser.add_argument("--force", action="store_true", help="keep the merged model even above the threshold")
    options = parser.parse_args(arguments)

    from posttrain.errors import clear_exit

    with clear_exit():
        for line in merge(**vars(options)):
            print(line)


def merge(
    adapter: str,
    out: str,
    *,
    onto: str = "auto",
    quantization: str = "auto",
    dtype: str = "float32",
    threshold: float | None = None,
    force: bool = False,
) -> list[str]:
    """Write the merged model to `out`; returns what to print. Above the threshold nothing is written: UserError."""
    import torch

    from posttrain.errors import UserError, writing
    from posttrain.models import load, lora, quantize, save
    from posttrain.models.loading import tokenizer_beside

    adapter = lora.model_in(Path(adapter).expanduser())
    if not lora.is_adapter(adapter):
        raise UserError(f"--adapter {adapter}: no LoRA adapter there (no adapter_config.json)")
    part = Path(f"{out.rstrip('/')}.part")
    for path in (Path(out), part):
        if os.path.lexists(path):
            raise UserError(f"--out {out}: {path} already exists: name another folder, or remove it")
    base = lora.base_of(adapter)
    trained_on = base.quantization if quantization == "auto" else quantization
    if onto == "dequantized" and trained_on == "none":
        raise UserError(
            "--onto dequantized: nothing says that the base was quantised in training: give --quantization 4bit or 8bit"
        )
    key = "the adapter's base"

    # What the adapter was trained to be: on the very weights it was trained on
    read_as = base.dtype if trained_on != "none" else torch.float32
    full, tokenizer, _ = load(base.name, quantization=trained_on, dtype=read_as, key=key)
    tokenizer, _ = tokenizer_beside(adapter, tokenizer)
    reference = _logits(lora.go_on(full, adapter, base.name), tokenizer)

    on_original = onto == "original"
    plain, _, _ = load(
        base.name,
        quantization="none" if on_original else trained_on,
        dtype=torch.float32 if on_original else read_as,
        key=key,
    )
    merged = quantize.cast(lora.merged(quantize.dequantize(plain), adapter), getattr(torch, dtype))
    try:
        with writing(out):
            part.parent.mkdir(parents=True, exist_ok=True)
            save(merged, tokenizer, part)
        # what will be read is what is checked
        got = _logits(load(str(part), dtype=getattr(torch, dtype), key="--out")[0], tokenizer)
    except Exception:
        shutil.rmtree(part, ignore_errors=True)
        raise

    worst = torch.stack([(a - b).abs().max() for a, b in zip(reference, got, strict=True)]).max().item()
    largest = torch.stack([a.abs().max() for a in reference]).max().item()
    same = torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten().float() for a, b in zip(reference, got, strict=True)])
    # 8-bit products round the activations too, so full-precision ones differ from them by a few per cent
    exact = dtype == "float32" and trained_on != "8bit" and read_as == torch.float32
    allowed = (threshold if threshold is not None else 1e-3 if exact else 0.05) * largest
    what = {"none": "its base", "8bit": "its dequantised 8-bit base", "4bit": "its dequantised 4-bit base"}
    lines = [
        f"merged {adapter} onto {what[trained_on] if not on_original else 'the original weights of its base'} ({base.name}), {dtype}",
        f"max |Δlogit| {worst:.2g} against the adapter model (largest |logit| {largest:.3g}, allowed {allowed:.2g}); "
        f"argmax agreement {same.mean().item():.1%} of {same.numel()} tokens",
    ]
    if not worst <= allowed and not force:  # NaN is not below anything
        shutil.rmtree(part)
        advice = "use --onto auto" if on_original and trained_on != "none" else "look at --dtype and --quantization"
        raise UserError(f"{lines[1]}: the merged model is another model; {advice}, or --force to keep it all the same")
    with writing(out):
        os.replace(part, out)
    return [*lines, f"wrote {out}"]


def _logits(model, tokenizer) -> list:
    import torch

    from posttrain.tokens import template

    model.eval()
    prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS]
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids], device=model.device)).logits.float().cpu() for ids in prompts]


if __name__ == "__main__":
    main()
