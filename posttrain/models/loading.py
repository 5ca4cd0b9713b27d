"""Models: loading, saving, and the one module that turns a batch into log-probabilities."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses.logprobs import chunked_token_logps, token_entropy, token_logps
from posttrain import hub
from posttrain.models import lora, quantize
from posttrain.tokens import template
from posttrain.tokens.batch import Batch, block_mask
from posttrain.errors import UserError
from posttrain.tiny import names as tiny
from posttrain.tiny import tokenizer as tiny_tokenizer

# ---------------------------------------------------------------- loading


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
) -> tuple[nn.Module, object, list[str]]:
    """(model, tokenizer, lines to print) from a hub id, a folder or an embedded name, in eval mode.

    A folder that holds a LoRA adapter is loaded with its base and merged, in float32: what is trained next starts from the
    whole of what was trained before, and "adapter off" then means that start, not the bare base.
    new_tokens: a tokenizer with more entries than the model has embeddings gets new rows for them; else it is refused.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = str(tiny.path_of(name)) if name in tiny.MODELS else name
    if (name.count("/") > 1 or name.startswith((".", "/", "~"))) and not Path(path).expanduser().is_dir():
        raise UserError(f"{key} '{name}': cannot be loaded: no such folder")
    path = str(Path(path).expanduser()) if name.startswith("~") else path
    if not Path(path).exists():
        hub.use_cache_if_unreachable()
        path = lora.local_folder(path, revision)
    adapter = lora.is_adapter(path)
    if adapter and quantization != "none":
        raise UserError(
            f"{key} '{name}' is a LoRA adapter, which cannot be folded into quantised weights: give its base as model.name and the "
            "adapter as model.adapter_path"
        )
    options: dict[str, Any] = {"revision": None if adapter else revision, "trust_remote_code": trust_remote_code}
    base = lora.base_of(path) if adapter else lora.Base(path, quantization, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path if not adapter or lora.has_tokenizer(path) else base.name, **options
        )
        if attn_implementation != "auto":
            options["attn_implementation"] = attn_implementation
        if base.quantization != "none":
            how = quantize.recipe(base.quantization, torch.float32 if adapter else dtype)
            options |= {"quantization_config": how, "device_map": {"": device}}
        model = AutoModelForCausalLM.from_pretrained(base.name, dtype=base.dtype, **options)
        quantize.guard(model)
    except UserError:
        raise
    except Exception as error:  # whatever the library says of a folder that is missing, broken or of another kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not Path(path).exists():
            reason = f"no such folder, not embedded ({', '.join(tiny.MODELS)}), and the hub does not give it: {reason}"
        raise UserError(f"{key} '{name}': cannot be loaded: {reason}") from None
    if adapter:
        model = quantize.cast(lora.merged(quantize.dequantize(model), path), dtype)
    if quantize.bits_of(model) == "none":
        model = model.to(device)
    try:
        lines = template.prepare_tokenizer(tokenizer)
    except ValueError as problem:
        raise UserError(f"{key} '{name}': {problem}") from None
    lines += _fit_embeddings(model, tokenizer, f"{key} '{name}'", new_tokens)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, lines


def from_scratch(config, device: torch.device | str) -> tuple[nn.Module, Any]:
    """(model of random weights, tokenizer): config.type, config.shape and config.tokenizer, as loops.pretrain has them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        if config.tokenizer == "tiny":
            tokenizer = tiny_tokenizer.build()
        else:
            if not Path(config.tokenizer).expanduser().exists():
                hub.use_cache_if_unreachable()
            tokenizer = AutoTokenizer.from_pretrained(str(Path(config.tokenizer).expanduser()))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.tokenizer '{config.tokenizer}': cannot be loaded: {reason}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        shape = AutoConfig.for_model(config.type, **{"vocab_size": len(tokenizer), **ids, **config.shape})
        model = AutoModelForCausalLM.from_config(shape)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.type '{config.type}' cannot be made with model.shape {config.shape}: {reason}"
        ) from None
    use_gradient_checkpointing(model, config)
    return model.to(device), tokenizer


def _fit_embeddings(model: nn.Module, tokenizer, which: str, new_tokens: bool) -> list[str]:
    """Every id of the tokenizer needs a row of the embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    missing = len(tokenizer) - rows
    if missing <= 0:
        return []
    if not new_tokens:
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        raise UserError(
            f"{which}: the tokenizer has {len(tokenizer)} entries, the model only {rows} embeddings. New tokens need rows that are trained, "
            "and LoRA freezes the embeddings"
            + (
                " (tied to the output head: training them would move every logit, and the adapter could not be merged)"
                if tied
                else ""
            )
            + ": train every weight (model.adapter: none), or add no tokens"
        )
    model.resize_token_embeddings(len(tokenizer))  # the new rows around the mean of the old ones
    return [
        f"{missing} tokens of the tokenizer had no embedding: added rows around the mean of the others, to be trained"
    ]


def load_policy(config, run) -> tuple[nn.Module, object, list[str]]:
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
    return model, tokenizer, lines


def load_frozen_or_whole(config, run) -> tuple[nn.Module, object, list[str]]:
    """config.model before any adapter is on it: the frozen base of one, or the whole that is trained."""
    adapter = config.adapter == "lora"
    model, tokenizer, lines = load(
        config.name,
        dtype=run.compute if adapter else torch.float32,
        device=run.device,
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


def base_folder(config, run, model: nn.Module, tokenizer) -> str:
    """Where a saved adapter will find the model under it: config.name, or, where that is an adapter itself, the merged start."""
    base = Path(tiny.path_of(config.name) if config.name in tiny.MODELS else Path(config.name).expanduser())
    name = str(base.resolve()) if base.is_dir() else config.name
    if lora.is_adapter(name):  # the new adapter needs a full model on disk to sit on (Run.prepare moves it there)
        name = str((run.folder / "start").resolve())
        run.has_start = True
        if run.accelerator.is_main_process:
            shutil.rmtree(f"{name}.part", ignore_errors=True)
            model.save_pretrained(f"{name}.part")
            tokenizer.save_pretrained(f"{name}.part")
    return name


def use_gradient_checkpointing(model: nn.Module, config) -> None:
    if config.gradient_checkpointing:
        full = model.get_base_model() if hasattr(model, "get_base_model") else model
        full.activation_checkpointing_enable({"use_reentrant": False})  # transformers 5's name for it


def tokenizer_beside(adapter: str, tokenizer) -> tuple[Any, list[str]]:
    """The tokenizer that the adapter was trained with, where it brought one: its chat template may not be the base's."""
    if not lora.has_tokenizer(adapter):
        return tokenizer, []
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(adapter)
    lines = template.prepare_tokenizer(own)
    if len(own) != len(tokenizer):
        raise UserError(f"{adapter}: its tokenizer has {len(own)} entries, that of the base {len(tokenizer)}")
    if own.chat_template != tokenizer.chat_template:
        lines.append(f"the chat template is that of {adapter}, which differs from the base's")
    return own, lines


def max_length(model: nn.Module, asked: int | None) -> int:
    """data.max_length, default min(1024, what the model can read)."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if asked is not None and limit is not None and asked > limit:
        raise UserError(f"data.max_length = {asked}, but the model reads at most {limit} tokens")
    return asked or min(1024, limit or 1024)


def no_dropout(model: nn.Module) -> None:
    """Set every dropout to 0 and leave the model in train mode (eval mode would switch gradient checkpointing off).

    For DPO and RL: the policy's log-probs are compared with the reference's and the sampler's, and with dropout they differ
    at step 0. The saved config keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def save(model: nn.Module, tokenizer, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Hugging Face format: loads with plain transformers, or peft where it is an adapter. The generation config is told
    every id that ends a turn, so that generate() stops where the loops' own sampler does.

    state_dict: the whole weights, of a model that is sharded."""
    full = model.get_base_model() if hasattr(model, "get_base_model") else model
    full.generation_config.eos_token_id = template.stop_ids(tokenizer)
    full.generation_config.pad_token_id = tokenizer.pad_token_id
    try:
        full.generation_config.validate(strict=True)
    except (
        ValueError
    ):  # some models ship temperature or top_p beside do_sample=False, which the library refuses to save:
        full.generation_config.do_sample = (
            True  # their authors meant sampling, and a trained model must not be lost over it
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, state_dict=state_dict)
    full.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if lora.is_adapter(folder):
        lora.write_note(folder, quantize.bits_of(full), full.get_input_embeddings().weight.dtype)


# ---------------------------------------------------------------- a batch -> log-probabilities


class CompletionLogps(nn.Module):
    """forward(batch) -> (logps, entropy), two [B, T], exactly 0 where nothing is scored.

    The one module given to accelerator.prepare: backbone and head both run inside its forward, so the hooks of DDP and
    FSDP fire. The head runs only where a completion token is predicted, in chunks (losses.logprobs.chunked_token_logps).
    Models that do more to their logits than the head (soft caps, scales) are found out by a probe, not by name, and take
    the plain path through the full logits.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.chunked = self._head_is_all_there_is()
        self.needs_block_mask = False  # for packed rows; see find_a_way_to_pack
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # for FSDP: what a layer is

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.with_hidden(batch, temperature)[:2]

    def with_hidden(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """(logps, entropy, hidden): the last hidden states [B, S, H] as well, for a value head on the same backbone."""
        attention_mask = batch.attention_mask
        if attention_mask is None and self.needs_block_mask:
            attention_mask = block_mask(batch.position_ids, self.model.get_input_embeddings().weight.dtype)
        if self.chunked:
            head = self._causal_lm.get_output_embeddings()
            # One chunk of float32 logits: 64 MiB on a CPU; larger on a GPU, where small matrix products waste it.
            chunk = max(64, min(1024, (2**26 if batch.input_ids.is_cuda else 2**24) // head.weight.shape[0]))
            hidden = self._hidden(batch.input_ids, attention_mask, batch.position_ids)
            logps, entropy = chunked_token_logps(
                hidden,
                head.weight,
                batch.input_ids,
                batch.active,
                head_bias=head.bias,
                temperature=temperature,
                chunk_size=chunk,
            )
            return logps, entropy, hidden
        out = self.model(
            input_ids=batch.input_ids,
            attention_mask=attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,  # with a cache, packed rows would see each other
            output_hidden_states=True,
        )
        return (
            torch.where(batch.active, token_logps(out.logits, batch.input_ids, temperature=temperature), 0.0),
            torch.where(batch.active, token_entropy(out.logits, temperature=temperature), 0.0),
            out.hidden_states[-1],
        )

    @property
    def hidden_size(self) -> int:
        return self._causal_lm.get_output_embeddings().weight.shape[1]  # not config.hidden_size: OPT-350m projects

    @property
    def _causal_lm(self) -> nn.Module:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        return self._causal_lm.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    @torch.no_grad()
    def find_a_way_to_pack(self) -> None:
        """Packed rows must not see each other. Most models find their borders out from restarting positions and no mask;
        for one that does not (OPT) they are told by a mask; one that leaks even so is refused. Tried on two packed rows
        (some kernels see the borders of a single one only), not looked up."""
        weight = self.model.get_input_embeddings().weight
        alone = torch.tensor([[3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3]], device=weight.device)
        packed = torch.cat([torch.tensor([[9, 10, 11], [11, 9, 10]], device=weight.device), alone], dim=1)
        positions = torch.cat([torch.arange(3), torch.arange(6)]).expand(2, -1).contiguous().to(weight.device)
        training, tolerance = self.model.training, 1e-3 if weight.dtype == torch.float32 else 0.02
        self.model.eval()
        expected = self.model(input_ids=alone, position_ids=positions[:, 3:], use_cache=False).logits.float()
        for mask in (None, block_mask(positions, weight.dtype)):
            try:
                got = self.model(input_ids=packed, attention_mask=mask, position_ids=positions, use_cache=False).logits
            except Exception:  # this architecture has another way with masks
                continue
            if (got[:, 3:].float() - expected).abs().max() <= tolerance * expected.abs().max():
                self.needs_block_mask = mask is not None
                break
        else:
            raise UserError(
                "training.packing: with this architecture and attention, packed rows see each other; set training.packing: false"
            )
        self.model.train(training)

    @torch.no_grad()
    def _head_is_all_there_is(self) -> bool:
        """Does head(last hidden state) give the model's own logits? Asked of four tokens."""
        head = self._causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or self._causal_lm.base_model is self._causal_lm:
            return False
        device = head.weight.device
        ids, positions = torch.arange(4, device=device)[None], torch.arange(4, device=device)[None]
        training = self.model.training
        self.model.eval()
        hidden = self._hidden(ids, None, positions)
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        self.model.train(training)
        return torch.equal(head(hidden), logits)  # bit for bit: a soft cap is all but invisible while logits are small
