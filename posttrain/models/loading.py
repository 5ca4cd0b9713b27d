"""Loading: a hub id, a folder, an adapter or an embedded name -> model and tokenizer; the policy of a run; random
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from posttrain import hub
from posttrain.errors import UserError, reason
from posttrain.models import checks, fetching, lora, quantize, short_rows
from posttrain.tiny import names as tiny
from posttrain.tiny import tokenizer as tiny_tokenizer
from posttrain.tokens import template

Loaded = tuple[nn.Module, Any, list[str]]  # model, tokenizer, lines to print


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    key: str = "model.name",
    quantization: str = "none",
    attn_implementation: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    new_tokens: bool = False,
) -> Loaded:
    """(model, tokenizer, lines to print) from a hub id, a folder or an embedded name, in eval mode.

    A folder that holds a LoRA adapter is loaded with its base and merged, in float32: what is trained next starts from
    the whole of what was trained before, and "adapter off" then means that start, not the bare base. key: what messages
    call the name. new_tokens: a tokenizer with more entries than the model has embeddings gets new rows for them; else
    it is refused.
    """
    path = find(name, key, revision)
    adapter = lora.is_adapter(path)
    if adapter and quantization != "none":
        raise UserError(
            f"{key} '{name}' is a LoRA adapter, which cannot be folded into quantised weights: give its base as model.name and the "
            "adapter as model.adapter_path"
        )
    base = lora.base_of(path) if adapter else lora.Base(path, quantization, dtype)
    options: dict[str, Any] = {"revision": None if adapter else revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = read_tokenizer(path if not adapter or lora.has_tokenizer(path) else base.name, options)
        if attn_implementation != "auto":
            options["attn_implementation"] = attn_implementation
        model, info = _weights(base, options, device, torch.float32 if adapter else dtype)
    except UserError:
        raise
    except Exception as error:  # whatever the library says of a folder that is broken or of another kind
        raise UserError(f"{key} '{name}': cannot be loaded: {why_not(path, error)}") from None
    checks.refuse_random_weights(model, info, f"{key} '{name}'")
    if attn_implementation == "auto":
        short_rows.use(model)
    if adapter:
        model = quantize.cast(lora.merged(quantize.dequantize(model), path), dtype)
    if quantize.bits_of(model) == "none":
        model = model.to(device)
    try:
        lines = template.prepare_tokenizer(tokenizer, model.generation_config.eos_token_id)
    except ValueError as problem:
        raise UserError(f"{key} '{name}': {problem}") from None
    lines += [fetching.smollm2()[1]] if name == fetching.SMOLLM2 else []
    lines += checks.not_used(info)
    lines += _fit_embeddings(model, tokenizer, f"{key} '{name}'", new_tokens)
    if quantize.bits_of(model) != "8bit":  # whose products depend on the rows beside them
        checks.refuse_seeing_the_future(model, f"{key} '{name}'")
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, lines


def find(name: str, key: str = "model.name", revision: str | None = None) -> str:
    """A folder, where there is one (an embedded model is built, smollm2 fetched, an adapter on the hub downloaded),
    else the hub id as it is."""
    if name in tiny.MODELS:
        return str(tiny.path_of(name))
    if name == fetching.SMOLLM2:
        return str(fetching.smollm2()[0])
    path = Path(name).expanduser()
    if (name.count("/") > 1 or name.startswith((".", "/", "~"))) and not path.is_dir():
        raise UserError(f"{key} '{name}': cannot be loaded: no such folder")
    if not path.exists():
        hub.use_cache_if_unreachable()
    return lora.local_folder(name, revision)


def why_not(path: str, error: Exception) -> str:
    """What to say of a model that could not be loaded from `path`."""
    folder = Path(path)
    if not folder.exists():
        return f"no such folder, not embedded ({', '.join(tiny.MODELS)}, {fetching.SMOLLM2}), and the hub does not give it: {reason(error)}"
    if folder.is_dir() and not lora.holds_a_model(folder):
        saved = sorted(folder.glob("checkpoints/step_*/model"), key=lambda model: model.stat().st_mtime)
        hint = f"; this run has not finished, its last checkpoint is {saved[-1]}" if saved else ""
        return f"no model there (neither config.json nor adapter_config.json){hint}"
    return reason(error)


def read_tokenizer(path: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:
        if not Path(path).exists():
            raise
        why = f"{type(error).__name__}: {reason(error)}"
        raise ValueError(f"its tokenizer cannot be read: is tokenizer.json there, and whole? ({why})") from error


def _weights(
    base: lora.Base, options: dict[str, Any], device: torch.device | str, compute: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, what was missing in the file, and what was left over)"""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if base.quantization != "none":
        how = quantize.recipe(base.quantization, compute)
        options = options | {"quantization_config": how, "device_map": {"": device}}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refuse_random_weights names them
    model, info = AutoModelForCausalLM.from_pretrained(base.name, dtype=base.dtype, **options)
    return quantize.guard(model), info


def _fit_embeddings(model: nn.Module, tokenizer: Any, which: str, new_tokens: bool) -> list[str]:
    """Every id of the tokenizer needs a row of the embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    missing = len(tokenizer) - rows
    if missing <= 0:
        return []
    if not new_tokens:
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        why = " (tied to the output head: training them would move every logit, and the adapter could not be merged)"
        raise UserError(
            f"{which}: the tokenizer has {len(tokenizer)} entries, the model only {rows} embeddings. New tokens need rows that are trained, "
            f"and LoRA freezes the embeddings{why if tied else ''}: train every weight (model.adapter: none), or add no tokens"
        )
    model.resize_token_embeddings(len(tokenizer))  # the new rows around the mean of the old ones
    return [
        f"{missing} tokens of the tokenizer had no embedding: added rows around the mean of the others, to be trained"
    ]


# ---------------------------------------------------------------- random weights, for loops.pretrain


def from_scratch(config: Any, device: torch.device | str) -> tuple[nn.Module, Any]:
    """(model of random weights, tokenizer): config.type, config.shape and config.tokenizer, for loops.pretrain."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if config.tokenizer == "tiny":
            tokenizer = tiny_tokenizer.build()
        else:
            tokenizer = read_tokenizer(find(config.tokenizer, "model.tokenizer"), {})
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model.tokenizer '{config.tokenizer}': cannot be loaded: {reason(error)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        shape = AutoConfig.for_model(config.type, **{"vocab_size": len(tokenizer), **ids, **config.shape})
        model = AutoModelForCausalLM.from_config(shape)
        short_rows.use(model)
    except Exception as error:
        why = f"cannot be made with model.shape {config.shape}: {reason(error)}"
        raise UserError(f"model.type '{config.type}' {why}") from None
    use_gradient_checkpointing(model, config)
    return model.to(device), tokenizer


# ---------------------------------------------------------------- the policy of a run


def load_policy(config: Any, run: Any) -> Loaded:
    """The model to train, on the run's device: float32 weights; with LoRA an adapter in float32 on a frozen base in the
    compute type, or in 8 or 4 bits."""
    model, tokenizer, lines = load_frozen_or_whole(config, run)
    if config.adapter == "lora":
        base = base_folder(config, run, model, tokenizer)
        if config.adapter_path is None:
            model = lora.add(model, config.lora, base)
        else:
            path = lora.local_folder(config.adapter_path)
            model = lora.go_on(model, path, base)
            lines += lora.describe(model, path, base, quantize.bits_of(model))
            tokenizer, more = tokenizer_beside(path, tokenizer)
            lines += more
    use_gradient_checkpointing(model, config)
    return model, tokenizer, lines + checks.about_experts(model, config.unbalanced_experts)


def load_frozen_or_whole(config: Any, run: Any) -> Loaded:
    """config.model before any adapter is on it: the frozen base of one, or the whole that is trained."""
    adapter = config.adapter == "lora"
    model, tokenizer, lines = load(
        config.name,
        dtype=run.compute if adapter else torch.float32,
        # quantising and flash attention (the model is tried out before it is spread) want the GPU at once
        device=run.device
        if config.quantization != "none" or "flash" in config.attn_implementation
        else run.parallel.loads_on,
        quantization=config.quantization,
        attn_implementation=config.attn_implementation,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        new_tokens=not adapter,
    )
    if not adapter and (bits := quantize.bits_of(model)) != "none":
        raise UserError(
            f"model.name '{config.name}' is stored in {bits}, which cannot be trained: set model.adapter: lora"
        )
    if not adapter and config.lora.model_fields_set:
        lines.append("model.lora is set, but model.adapter is none: every weight is trained")
    return model, tokenizer, lines


def base_folder(config: Any, run: Any, model: nn.Module, tokenizer: Any) -> str:
    """Where a saved adapter will find the model under it: config.name, or, where that is an adapter itself, the merged
    start."""
    base = Path(find(config.name, revision=config.revision))
    name = str(base.resolve()) if base.is_dir() else config.name
    if lora.is_adapter(name):  # the new adapter needs a full model on disk to sit on
        return run.write_start(model, tokenizer)
    return name


def use_gradient_checkpointing(model: nn.Module, config: Any) -> None:
    if config.gradient_checkpointing:
        # transformers 5's name for it
        lora.without_adapter(model).activation_checkpointing_enable({"use_reentrant": False})


def tokenizer_beside(adapter: str, tokenizer: Any) -> tuple[Any, list[str]]:
    """The tokenizer that the adapter was trained with, where it brought one: its chat template may be another."""
    if not lora.has_tokenizer(adapter):
        return tokenizer, []
    own = read_tokenizer(adapter, {})
    lines = template.prepare_tokenizer(own, getattr(tokenizer, "ends_of_the_model", []))
    if len(own) != len(tokenizer):
        raise UserError(f"{adapter}: its tokenizer has {len(own)} entries, that of the base {len(tokenizer)}")
    if own.chat_template != tokenizer.chat_template:
        lines.append(f"the chat template is that of {adapter}, which differs from the base's")
    return own, lines


def reads_at_most(model: nn.Module) -> int | None:
    """Tokens of a row; None: its config names no limit."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def device_of(asked: str) -> str:
    """--device auto, cpu or cuda -> cpu or cuda."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UserError("--device cuda: torch finds no GPU here")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


def max_length(model: nn.Module, asked: int | None) -> int:
    """data.max_length, default min(1024, what the model can read)."""
    limit = reads_at_most(model)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"data.max_length = {asked}, but the model reads at most {limit} tokens")
    return asked or min(1024, limit or 1024)


def no_dropout(model: nn.Module) -> None:
    """Set every dropout, and every router's jitter, to 0 and leave the model in train mode (eval mode would switch
    gradient checkpointing off).

    For DPO and RL: the policy's log-probs are compared with the reference's and the sampler's, and with dropout they
    differ at step 0. The saved config keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or "jitter" in name or name == "layerdrop"):
                setattr(module, name, 0.0)
