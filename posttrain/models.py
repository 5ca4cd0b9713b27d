"""Models: loading, LoRA, the frozen reference, and the one module that turns a batch into log-probabilities."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from losses.logprobs import chunked_token_logps, token_entropy, token_logps
from posttrain import chat, tiny
from posttrain.batch import Batch
from posttrain.errors import UserError

EMBEDDED = ("tiny-base", "tiny-sft", "tiny-dpo")


# ---------------------------------------------------------------- loading


def load(
    name: str, *, dtype: torch.dtype = torch.float32, key: str = "model.name"
) -> tuple[nn.Module, object, list[str]]:
    """(model, tokenizer, lines to print) from a hub id, a folder or an embedded name, on the CPU.

    A folder that holds a LoRA adapter is loaded with its base and merged, in float32: what is trained next starts from the
    whole of what was trained before, and "adapter off" then means that start, not the bare base.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = str(tiny.folder(name)) if name in EMBEDDED else name
    if (name.count("/") > 1 or name.startswith((".", "/", "~"))) and not Path(name).is_dir():
        raise UserError(f"{key} '{name}': cannot be loaded: no such folder")
    adapter = Path(path) / "adapter_config.json"
    try:
        base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else path
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32 if adapter.is_file() else dtype)
    except Exception as error:  # whatever the library says of a folder that is missing, broken or of another kind
        if not Path(path).exists():
            raise UserError(
                f"{key} '{name}': cannot be loaded: no such folder, not embedded ({', '.join(EMBEDDED)}), and the hub does not give it: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]}"
            ) from None
        raise UserError(
            f"{key} '{name}': cannot be loaded: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from None
    if adapter.is_file():
        with quiet_peft() as peft:
            model = peft.PeftModel.from_pretrained(model, path).merge_and_unload().to(dtype)
        model.requires_grad_(True)  # peft had frozen the base
    try:
        lines = chat.prepare_tokenizer(tokenizer)
    except ValueError as problem:
        raise UserError(f"{key} '{name}': {problem}") from None
    if (rows := model.get_input_embeddings().weight.shape[0]) < len(tokenizer):
        raise UserError(
            f"{key} '{name}': the tokenizer has {len(tokenizer)} entries, the model only {rows} embeddings: they do not belong together"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, lines


def load_policy(config, run) -> tuple[nn.Module, object, list[str]]:
    """The model to train: float32 weights; with LoRA a fresh adapter in float32 on a frozen base in the compute type."""
    lora = config.adapter == "lora"
    model, tokenizer, lines = load(config.name, dtype=run.compute if lora else torch.float32)
    if not lora and config.lora.model_fields_set:
        lines.append("model.lora is set, but model.adapter is none: every weight is trained")
    if lora:
        base = Path(tiny.folder(config.name) if config.name in EMBEDDED else config.name)
        base = str(base.resolve()) if base.is_dir() else config.name
        if (Path(base) / "adapter_config.json").is_file():
            # The new adapter needs a full model on disk to sit on: the merged start, beside it (Run.prepare moves it there).
            base = str((run.folder / "start").resolve())
            if run.accelerator.is_main_process:
                model.save_pretrained(f"{base}.part")
                tokenizer.save_pretrained(f"{base}.part")
        model = add_lora(model, config.lora, base)
    if config.gradient_checkpointing:
        full = model.get_base_model() if lora else model
        full.activation_checkpointing_enable({"use_reentrant": False})  # transformers 5's name for it
    return model, tokenizer, lines


@contextmanager
def quiet_peft():
    """peft, imported when it is needed (4 s: it pulls in bitsandbytes), without the warnings that are not ours to heed."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        yield peft


def add_lora(model: nn.Module, lora, base_name: str) -> nn.Module:
    with quiet_peft() as peft:
        model.name_or_path = base_name  # goes into adapter_config.json: where the saved adapter finds its base again
        how = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        )
        try:
            model = peft.get_peft_model(model, how)
        except ValueError as error:
            raise UserError(f"model.lora.targets {lora.targets!r}: {str(error).splitlines()[0]}") from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


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


def save(model: nn.Module, tokenizer, folder: Path) -> None:
    """Hugging Face format: loads with plain transformers, or peft where it is an adapter. The generation config is told
    every id that ends a turn, so that generate() stops where the loops' own sampler does."""
    full = model.get_base_model() if hasattr(model, "get_base_model") else model
    full.generation_config.eos_token_id = chat.stop_ids(tokenizer)
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
        model.save_pretrained(folder)
    full.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        if self.chunked:
            head = self._causal_lm.get_output_embeddings()
            # One chunk of float32 logits: 64 MiB on a CPU; larger on a GPU, where small matrix products waste it.
            chunk = max(64, min(1024, (2**26 if batch.input_ids.is_cuda else 2**24) // head.weight.shape[0]))
            return chunked_token_logps(
                self._hidden(batch.input_ids, batch.attention_mask, batch.position_ids),
                head.weight,
                batch.input_ids,
                batch.active,
                head_bias=head.bias,
                temperature=temperature,
                chunk_size=chunk,
            )
        logits = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).logits
        return (
            torch.where(batch.active, token_logps(logits, batch.input_ids, temperature=temperature), 0.0),
            torch.where(batch.active, token_entropy(logits, temperature=temperature), 0.0),
        )

    @property
    def _causal_lm(self) -> nn.Module:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
        return self._causal_lm.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

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


# ---------------------------------------------------------------- the frozen reference


class AdapterOff(nn.Module):
    """The reference as the policy with its fresh adapter switched off: no second copy of the model in memory."""

    def __init__(self, policy: CompletionLogps):
        super().__init__()
        self._policy = [policy]  # in a list: not a submodule, so its parameters are counted and saved once

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        policy = self._policy[0]
        with policy.model.disable_adapter():
            return policy(batch, temperature)


def frozen_reference(policy: CompletionLogps, config, compute: torch.dtype) -> nn.Module:
    """A module like the policy's, frozen: the policy as it is now, before the first step, unless config.reference names
    another model. Its weights never change; call it under torch.no_grad()."""
    fresh_adapter = config.adapter == "lora"
    how = config.reference
    if how == "auto":
        how = "adapter_off" if fresh_adapter else "copy"
    if how == "adapter_off":
        return AdapterOff(policy)
    if (
        how == "copy"
    ):  # in the policy's own dtype: rounded to bf16 it would not be the policy at step 0 (measured: nats)
        model = copy.deepcopy(policy.model)
    else:  # another model is not asked to equal the policy, so its frozen weights may be stored in the compute type
        model = load(how, dtype=compute, key="model.reference")[0].to(next(policy.parameters()).device)
        if model.get_input_embeddings().weight.shape[0] != policy.model.get_input_embeddings().weight.shape[0]:
            raise UserError(
                f"model.reference '{how}' has another vocabulary than the policy: their log-probabilities cannot be compared"
            )
    model.requires_grad_(False)
    no_dropout(model)
    return CompletionLogps(model.train(policy.model.training))
