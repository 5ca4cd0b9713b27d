"""The models that are served or chatted with, each under a name: as it is, or with one LoRA adapter switched on.

Adapters stay beside their base, not merged: the base's weights are there once, whoever speaks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from posttrain import models
from posttrain.errors import UserError, reason
from posttrain.models import lora
from posttrain.models.loading import find, tokenizer_beside
from posttrain.serving.running import Running
from posttrain.tokens import template

Messages = list[dict[str, Any]]


@dataclass
class Voice:
    """Who can be asked: a model, its tokenizer, and the rows that it is answering."""

    name: str
    model: Any
    tokenizer: Any
    limit: int  # tokens of a prompt and its answer together
    adapter: str | None = None  # its name on a model that carries some; None: the model as it is
    base: str | None = None  # the voice that the adapter sits on
    path: str = ""  # where it was loaded from
    stop_ids: list[int] = field(default_factory=list)
    running: Running = field(init=False)

    def __post_init__(self) -> None:
        self.stop_ids = self.stop_ids or template.stop_ids(self.tokenizer)
        self.running = Running(self.model, self.tokenizer.pad_token_id)

    def prompt_ids(self, messages: Messages, template_kwargs: dict[str, Any] | None = None) -> list[int]:
        """Through the chat template, as in training and evaluation; what a user types of special tokens stays text."""
        return template.prompt_ids(self.tokenizer, messages, template_kwargs=template_kwargs)

    @property
    def vocabulary(self) -> int:
        """How many ids the model knows."""
        return self.model.get_input_embeddings().weight.shape[0]

    def switch_on(self) -> None:
        """Its adapter, or none, is what the model computes with from here on."""
        if not hasattr(self.model, "peft_config"):
            return
        if self.adapter is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(self.adapter, inference_mode=True)


def name_and_path(given: str) -> tuple[str, str]:
    """NAME=PATH, or a path that is its own name: what stands behind --model and --adapter."""
    name, equals, path = given.partition("=")
    return (name, path) if equals and name and path and "/" not in name else (given.rstrip("/"), given)


class Voices(dict[str, Voice]):
    """{name: Voice}, the first one the default. Loading and unloading is for the thread that computes, or before it."""

    def __init__(self, *, device: str, dtype: torch.dtype, max_length: int | None):
        super().__init__()
        self.device, self.dtype, self.max_length = device, dtype, max_length

    def load(self, name: str, path: str, *, key: str = "--model") -> list[str]:
        """A model (an adapter's folder: merged, as everywhere); returns lines to print."""
        self._refuse_taken(name, key)
        model, tokenizer, lines = models.load(path, dtype=self.dtype, device=self.device, key=key)
        own = models.reads_at_most(model)
        if self.max_length is not None and own is not None and self.max_length > own:
            raise UserError(f"--max-length {self.max_length}: {name} reads at most {own} tokens")
        limit = self.max_length or min(4096, own or 4096)
        self[name] = Voice(name, model.eval().requires_grad_(False), tokenizer, limit, path=path)
        return lines

    def load_adapter(self, name: str, path: str, *, key: str = "--adapter") -> list[str]:
        """A LoRA adapter on the first model; returns lines to print."""
        self._refuse_taken(name, key)
        under = next(iter(self.values()))
        try:
            folder = lora.local_folder(path)
            if not lora.is_adapter(folder):
                raise UserError(f"{key} {path}: no LoRA adapter there (no adapter_config.json)")
            task, trained_on, changed = lora.task_of(folder), lora.base_of(folder), _changes_the_base(folder)
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = f"{type(error).__name__}: {reason(error):.200}"
            raise UserError(f"{key} {path:.200}: its adapter_config.json cannot be read ({why})") from None
        if task not in (None, "CAUSAL_LM"):
            raise UserError(f"{key} {path}: an adapter of a {task} model, not of a language model")
        if trained_on.quantization != "none":
            raise UserError(
                f"{key} {path}: trained on a base in {trained_on.quantization}: fold it in (python -m posttrain.merge) and serve the "
                "merged folder with --model"
            )
        lines = []
        if Path(trained_on.name or "").name not in (Path(under.path).name, Path(find(under.path)).name):
            lines.append(f"warning: {name} was trained on {trained_on.name}, and is put on {under.path}")
        if changed is not None:
            raise UserError(
                f"{key} {path}: {changed}, which changes the base that others are answered by: fold it in (python -m "
                "posttrain.merge) and serve the merged folder with --model"
            )
        tokenizer, more = tokenizer_beside(folder, under.tokenizer)
        # under's own tokenizer may be reading a request in another thread: what ends an answer is known already
        stops = under.stop_ids if tokenizer is under.tokenizer else template.stop_ids(tokenizer)
        model = self._attach(under, name, folder, key)
        under.model = under.running.model = model  # it carries adapters now, switched off where it speaks itself
        self[name] = Voice(
            name, model, tokenizer, under.limit, adapter=_tag(name), base=under.name, path=path, stop_ids=stops
        )
        return lines + more

    def _attach(self, under: Voice, name: str, folder: str, key: str) -> Any:
        """The model with the adapter beside those that it carries. One that cannot be loaded leaves it as it was."""
        model, tag, carries = under.model, _tag(name), hasattr(under.model, "peft_config")
        layers = [(parent, place, child) for parent in model.modules() for place, child in parent.named_children()]
        with lora.quiet_peft() as peft:
            try:
                if not carries:
                    model = peft.PeftModelForCausalLM(model, peft.LoraConfig.from_pretrained(folder), adapter_name=tag)
                read = model.load_adapter(folder, adapter_name=tag, is_trainable=False)
                if others := [*read.missing_keys, *read.unexpected_keys]:  # peft would go on without a word
                    raise ValueError(f"it is for other layers ({others[0].replace('.' + tag, '')})")
            except Exception as error:
                if carries and tag in model.peft_config:
                    model.delete_adapter(tag)
                if not carries:  # peft puts its layers in before it reads any weights
                    for parent, place, child in layers:
                        setattr(parent, place, child)
                    vars(under.model).pop("peft_config", None)
                raise UserError(f"{key} {folder}: cannot be loaded onto {under.path}: {reason(error)}") from None
        return model.eval().requires_grad_(False)

    def unload_adapter(self, name: str) -> None:
        voice = self[name]
        assert voice.adapter is not None
        del self[name]
        with lora.quiet_peft():
            if len(voice.model.peft_config) > 1:
                voice.model.delete_adapter(voice.adapter)
                return
            plain = voice.model.unload()  # the last one: the base is a plain model again
        for other in self.values():
            if other.model is voice.model:
                other.model = other.running.model = plain

    def _refuse_taken(self, name: str, key: str) -> None:
        if name in self:
            raise UserError(f"{key}: two models are called {name}: give one another name, {key} NAME=PATH")


def load_all(
    model: list[str], adapter: list[str], *, device: str, dtype: str, max_length: int | None
) -> tuple[Voices, list[str]]:
    """--model and --adapter, --device and --dtype as they are typed -> the voices, and lines to print."""
    device = models.device_of(device)
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    voices, lines = Voices(device=device, dtype=getattr(torch, dtype), max_length=max_length), []
    for given in model:
        lines += voices.load(*name_and_path(given))
    for given in adapter:
        lines += voices.load_adapter(*name_and_path(given))
    return voices, lines


def _changes_the_base(folder: str) -> str | None:
    """What peft does to the base's own weights when it loads this adapter, in words; None: nothing."""
    how = json.loads((Path(folder) / "adapter_config.json").read_text())
    if (bias := how.get("bias", "none")) != "none":
        return f"it brings biases of the base (bias: {bias})"
    first = how.get("init_lora_weights", True)
    if isinstance(first, str) and first.lower() not in ("gaussian", "orthogonal", "eva", "mica"):
        return f"it began with a part of the base's weights (init_lora_weights: {first})"
    return "it repeats layers of the base (layer_replication)" if how.get("layer_replication") else None


def _tag(name: str) -> str:
    """peft makes it a part of a module's name, where dots separate."""
    return "adapter_" + name.encode().hex()
