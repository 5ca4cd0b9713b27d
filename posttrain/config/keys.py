"""The keys that all methods share, with their meaning, default and range: the pydantic models behind config.py and
--help.

Each method's own keys stand in methods.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.section import Section, from_the_command_line
from posttrain.config.suites import Evaluation


class Lora(Section):
    rank: int = Field(16, ge=1, description="rank of the two low-rank factors")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the adapter's input; all loops but SFT set it to 0, as every dropout"
    )
    targets: str | list[str] = Field(
        "all-linear", description="'all-linear', or the names of the layers to adapt, e.g. [q_proj, v_proj]"
    )


class Model(Section):
    name: str = Field(
        description="a hub id, a folder, smollm2 (SmolLM2-135M-Instruct, also without a hub), or tiny-base | tiny-sft | tiny-dpo | tiny-grpo (embedded, built on first use)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type. Trainable weights stay float32; auto: bf16 autocast on a GPU that has bf16, and for more than 50 million parameters on a CPU that is faster in it (measured at the start); else float32",
    )
    adapter: Literal["none", "lora"] = Field(
        "none", description="none trains every weight; lora trains a small adapter (learning rate about x 10)"
    )
    lora: Lora = Field(default_factory=Lora, description="used with adapter: lora")
    adapter_path: str | None = Field(
        None,
        description="go on training this saved LoRA adapter (a folder or hub id) on top of model.name; its own rank and alpha hold",
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none",
        description="store the frozen base in 8 or 4 bits (bitsandbytes; 4bit is nf4 with double quantisation, QLoRA); needs adapter: lora",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep fewer activations, compute them again in the backward pass: less memory, same gradients",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto",
        description="how attention is computed; auto: what transformers picks for the model (sdpa for most), and for short rows in 16 bits on a CPU plain products",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub model; default its main branch")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with a hub model; read it first, it can do anything you can"
    )
    unbalanced_experts: bool = Field(
        False,
        description="train the router of a mixture of experts without the loss that keeps its experts busy, which is not trained here",
    )

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.attn_implementation.startswith("flash") and self.adapter != "lora":
            raise ValueError(
                f"attn_implementation: {self.attn_implementation} wants 16-bit weights, and weights that are trained stay float32 here: use "
                "sdpa (on a GPU it runs flash kernels, too), or adapter: lora"
            )
        if self.quantization != "none" and self.adapter != "lora":
            raise ValueError(
                f"quantization: {self.quantization} needs adapter: lora (quantised weights cannot be trained, an adapter on them can)"
            )
        if self.adapter_path is not None and self.adapter != "lora":
            raise ValueError("adapter_path needs adapter: lora (the saved adapter is what is trained)")
        return self


class ModelWithReference(Model):
    reference: str = Field(
        "auto",
        description="the frozen reference: copy (of what is trained, as it was at step 0), adapter_off (the policy without its fresh "
        "adapter: no copy at all), a model name or folder, or auto (adapter_off with a fresh adapter, else copy)",
    )

    @model_validator(mode="after")
    def _adapter_off_needs_an_adapter(self) -> Self:
        if self.reference == "adapter_off" and self.adapter != "lora":
            raise ValueError(
                "reference: adapter_off needs adapter: lora (without an adapter there is nothing to switch off; use copy)"
            )
        if self.reference == "adapter_off" and self.adapter_path is not None:
            raise ValueError(
                "reference: adapter_off with adapter_path: without its adapter the policy is not what it was at step 0; use auto or copy"
            )
        return self


class Data(Section):
    name: str | list[str] | None = Field(
        None,
        description="a .jsonl, .json, .csv or .parquet file, a folder of these, a hub data set, tiny-sft | tiny-identity | tiny-math | tiny-preference | tiny-outcome, reasoning-gym:TASK (see task), or a list of several",
    )
    weights: list[float] | None = Field(
        None,
        description="with several names: the share of each in the mix, drawn until one runs out, none twice; default: all rows of all",
    )
    subset: str | None = Field(None, description="configuration of a hub data set, e.g. main for openai/gsm8k")
    task: dict[str, Any] = Field(
        default_factory=dict,
        description="of reasoning-gym:TASK: size (rows), seed, and the task's own arguments, e.g. {max_terms: 3}",
    )
    split: str = Field(
        "train", description="which split of it; the embedded sets have train and test, divided by content"
    )
    streaming: bool = Field(
        False,
        description="read the rows while training instead of all at once, for sets that do not fit in memory; needs training.max_steps",
    )
    max_samples: int | None = Field(
        None, ge=1, description="use only the first rows (of several sources: of each its share)"
    )
    validation_split: float = Field(
        0.0, ge=0, lt=1, description="share of the rows kept out of training for evaluation (training.eval_every)"
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="which rows are kept out for validation or drawn into a mix; not their order"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="longest row in tokens, prompt and completion; default min(1024, what the model can read)",
    )
    overlong: Literal["drop", "truncate_prompt", "error"] = Field(
        "drop",
        description="longer rows: drop and count them (above 5 %, and more than one, is an error), cut the prompt's beginning, or stop",
    )
    bad_rows: Literal["drop", "error"] = Field(
        "drop",
        description="rows that no loop can use (roles out of order, an empty side …): drop and count them (above 5 % is an error), or stop "
        "at the first",
    )
    system_prompt: str | None = Field(
        None, description="put before every conversation that has no system message of its own"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the chat template, e.g. {enable_thinking: false} for Qwen3; a row's column of that name "
        "goes before it",
    )
    ignore: list[str] = Field(
        default_factory=list, description="columns, and keys of messages, to read as if they were not there"
    )

    _typed = field_validator("chat_template_kwargs", "task", mode="before")(from_the_command_line)

    @model_validator(mode="after")
    def _names_and_weights(self) -> Self:
        names = [self.name] if isinstance(self.name, str) else self.name
        if names is not None and not names:
            raise ValueError("name is an empty list: give at least one file or data set")
        if names is not None and len(set(names)) < len(names):
            raise ValueError("name lists a source twice: give each once, and weights for its share")
        if self.task and not any(name.startswith("reasoning-gym:") for name in names or []):
            raise ValueError("task belongs to name: reasoning-gym:TASK")
        if self.weights is not None:
            if len(self.weights) != len(names or []):
                raise ValueError(f"weights has {len(self.weights)} entries for {len(names or [])} names")
            if min(self.weights) <= 0:
                raise ValueError("every entry of weights must be above 0: leave a source out rather than weigh it 0")
        if self.streaming and self.validation_split:
            raise ValueError("validation_split needs all rows at once: leave it out with streaming: true")
        return self


class Training(Section):
    batch_size: int = Field(
        16,
        ge=1,
        description="rows (SFT, distillation, KTO, outcome rewards) or pairs (DPO, SimPO, reward) per optimiser step, all processes and micro-batches together",
    )
    micro_batch_size: int = Field(
        8, ge=1, description="how many of them go through the model at once, per process: memory, not mathematics"
    )
    epochs: int = Field(1, ge=1, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps, whatever epochs says")
    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how it falls to 0 after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps over which it rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay, on matrices only (not on biases and norms)")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit keeps its state in 8 bits (bitsandbytes)"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="data order, sampling, new adapter weights and dropout")
    eval_every: int | None = Field(
        None, ge=1, description="evaluate on the validation split every so many steps, and at the end"
    )
    save_every: int | None = Field(
        None,
        ge=1,
        description="write a checkpoint every so many optimiser steps: --resume goes on from the latest one, exactly",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="how many of the newest checkpoints stay; the best one (best_metric) always does"
    )
    best_metric: str | None = Field(
        None,
        description="write a checkpoint whenever this validation metric is better than ever, and keep it; needs eval_every. Less is better "
        "for a loss, more for everything else",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: cuda where there is one, else cpu (mps is untested)"
    )
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="torch threads on a CPU; default 1 for models under a million parameters, else torch's own",
    )
    logit_budget_mb: int = Field(
        512,
        ge=0,
        description="memory that a trained head may take to be a quarter faster: up to that, what its backward pass needs is kept, beyond "
        "it the logits are made twice",
    )


class SharingTraining(Training):
    share_prompts: bool | Literal["auto"] = Field(
        "auto",
        description="a prompt that several rows of a micro-batch begin with (a pair, a group) goes through the model once, and padding not "
        "at all: same loss, less work. auto: where that saves a fifth of the tokens, and the model then computes the same",
    )


class Output(Section):
    dir: str | None = Field(None, description="the run folder; default outputs/<name of the config file>")
    overwrite: bool = Field(False, description="replace a finished run that stands there")
    samples: int = Field(
        4, ge=0, description="how many prompts to answer before and after the run, for samples.md; 0 skips it"
    )


def _as_list(value: Any) -> Any:
    """One name is a list of one, none an empty one, a name given twice counts once."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    return list(dict.fromkeys(names)) if isinstance(names, list) else names


class Tracking(Section):
    to: Annotated[list[Literal["tensorboard", "mlflow", "wandb"]], BeforeValidator(_as_list)] = Field(
        default_factory=list,
        description="experiment trackers to tell as well, e.g. tensorboard; metrics.jsonl and curves.png are always written",
    )
    project: str | None = Field(None, description="wandb project, mlflow experiment; default posttrain")
    run_name: str | None = Field(None, description="what the trackers call this run; default the run folder's name")


class Preflight(Section):
    """Checks before the first update; each can be switched off. Every method has those that apply to it."""

    gradients: bool = Field(True, description="every trainable tensor got a finite gradient in the first backward pass")


class RewardPreflight(Preflight):
    rows: bool = Field(True, description="every row has at least one supervised token")
    start: bool = Field(True, description="the loss starts at ln 2: the head starts at 0")


class SftPreflight(Preflight):
    rows: bool = Field(True, description="every row has at least one supervised token")
    stop_token: bool = Field(True, description="the model has its stop token, and the first step's rows teach it")


class DpoPreflight(SftPreflight):
    start: bool = Field(
        True,
        description="at step 0, where the reference is the starting policy, it says the same of every single answer",
    )


class PpoPreflight(Preflight):
    sampler: bool = Field(
        True,
        description="sampler and trainer agree on the log-probs of the sampled tokens: on average, to both sides, at one temperature",
    )
    stop_token: bool = Field(True, description="the model has its stop token")


class GrpoPreflight(PpoPreflight):
    dead_groups: bool = Field(True, description="warn, with the reason, where all groups of the first rollout are dead")


VALIDATION_METRICS = {
    "sft": ("validation_loss",),
    "distill": ("validation_loss",),
    "dpo": ("validation_loss", "validation_accuracy"),
    "simpo": ("validation_loss", "validation_accuracy"),
    "kto": ("validation_loss", "validation_accuracy"),
    "reward": ("validation_loss", "validation_accuracy"),
    "grpo": ("reward_held_out",),
    "ppo": ("reward_held_out",),
}


def _refuse_unmeasured(best: str, method: str) -> None:
    names = VALIDATION_METRICS[method]
    watched = method in ("grpo", "ppo") and best.startswith("watched/") and best.endswith("_held_out")
    if best not in names and not watched:
        raise ValueError(
            f"training.best_metric: {best} is not a validation metric of loops.{method}: it has {' and '.join(names)}"
        )


class RunConfig(Section):
    """What every run has: a model, data, steps, a folder; it may tell trackers, checks itself, and can be resumed."""

    model: Section
    data: Section
    training: Training = Field(default_factory=Training)
    output: Output = Field(default_factory=Output)
    tracking: Tracking = Field(default_factory=Tracking)
    preflight: Preflight = Field(default_factory=Preflight)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    resume: bool = Field(
        False,
        exclude=True,
        description="go on from the latest checkpoint in the run folder (from step 0 where there is none)",
    )

    @model_validator(mode="after")
    def _the_model_can_do_the_suites(self) -> Self:
        for name in self.evaluation.suites:
            if self.method == "reward":
                raise ValueError(
                    f"evaluation.suites: {name} measures a model that writes, and loops.reward trains one that scores"
                )
            if self.method == "pretrain" and name != "perplexity":
                raise ValueError(
                    f"evaluation.suites: {name} asks through a chat template, which nothing has taught the model of loops.pretrain: "
                    "perplexity alone"
                )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or f"outputs/{self.method}")

    @property
    def method(self) -> str:
        """The name of the group that is the method's own: sft, dpo, grpo …"""
        return next(name for name in type(self).model_fields if name not in RunConfig.model_fields)


class Config(RunConfig):
    """What all methods share that begin with a trained model and rows."""

    model: Model
    data: Data = Field(default_factory=Data)

    @model_validator(mode="after")
    def _best_of_what_is_measured(self) -> Self:
        best = self.training.best_metric
        if best is not None:
            _refuse_unmeasured(best, self.method)
            if self.training.eval_every is None:
                raise ValueError(
                    "training.best_metric needs training.eval_every and data.validation_split: it is a validation metric"
                )
        return self

    @model_validator(mode="after")
    def _evaluation_needs_rows(self) -> Self:
        if (self.training.eval_every is not None) != (self.data.validation_split > 0):
            raise ValueError("training.eval_every and data.validation_split belong together: set both or neither")
        if self.data.streaming and self.training.max_steps is None:
            raise ValueError("data.streaming needs training.max_steps: how long a stream is, nobody knows beforehand")
        return self
