"""Every key a run understands, with its meaning, default and range: the pydantic models behind config.py and --help."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_groups(cls, values: Any) -> Any:
        """`lora:` with nothing under it is an empty group; a required group that is missing names its own missing keys."""
        if not isinstance(values, dict):
            return values
        groups = {
            n: f
            for n, f in cls.model_fields.items()
            if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)
        }
        return values | {n: {} for n, f in groups.items() if values.get(n) is None and (n in values or f.is_required())}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"expected a value, got {str(value).lower()}")
        return value


class Lora(Section):
    rank: int = Field(16, ge=1, description="rank of the two low-rank factors")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the adapter's input; DPO and GRPO set it to 0, as every dropout"
    )
    targets: str | list[str] = Field(
        "all-linear", description="'all-linear', or the names of the layers to adapt, e.g. [q_proj, v_proj]"
    )


class Model(Section):
    name: str = Field(
        description="a hub id, a folder, or tiny-base | tiny-sft | tiny-dpo (embedded, built on first use)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type. Trainable weights stay float32; auto: bf16 autocast on a GPU that has bf16, else float32",
    )
    adapter: Literal["none", "lora"] = Field(
        "none", description="none trains every weight; lora trains a small adapter (learning rate about x 10)"
    )
    lora: Lora = Field(default_factory=Lora, description="used with adapter: lora")
    gradient_checkpointing: bool = Field(
        False,
        description="keep fewer activations, compute them again in the backward pass: less memory, same gradients",
    )


class ModelWithReference(Model):
    reference: str = Field(
        "auto",
        description="the frozen reference: copy (of the policy at step 0), adapter_off (the policy without its fresh adapter: no second "
        "copy in memory), a model name or folder, or auto (adapter_off with a fresh adapter, else copy)",
    )

    @model_validator(mode="after")
    def _adapter_off_needs_an_adapter(self):
        if self.reference == "adapter_off" and self.adapter != "lora":
            raise ValueError(
                "reference: adapter_off needs adapter: lora (without an adapter there is nothing to switch off; use copy)"
            )
        return self


class Data(Section):
    name: str | None = Field(
        None,
        description="a .jsonl, .json, .csv or .parquet file, a hub data set, or tiny-sft | tiny-identity | tiny-math",
    )
    split: str = Field(
        "train", description="which split of it; the embedded sets have train and test, divided by content"
    )
    max_samples: int | None = Field(None, ge=1, description="use only the first rows")
    validation_split: float = Field(
        0.0, ge=0, lt=1, description="share of the rows kept out of training for evaluation (training.eval_every)"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="longest row in tokens, prompt and completion; default min(1024, what the model can read). Longer rows are dropped and counted",
    )
    system_prompt: str | None = Field(
        None, description="put before every conversation that has no system message of its own"
    )


class Training(Section):
    batch_size: int = Field(
        16, ge=1, description="rows (SFT) or pairs (DPO) per optimiser step, all processes and micro-batches together"
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
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: cuda where there is one, else cpu (mps is untested)"
    )
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="torch threads on a CPU; default 1 for models under a million parameters, else torch's own",
    )


class Output(Section):
    dir: str | None = Field(None, description="the run folder; default outputs/<name of the config file>")
    overwrite: bool = Field(False, description="replace a finished run that stands there")
    samples: int = Field(
        4, ge=0, description="how many prompts to answer before and after the run, for samples.md; 0 skips it"
    )


class Config(Section):
    """What all methods share."""

    model: Model
    data: Data = Field(default_factory=Data)
    training: Training = Field(default_factory=Training)
    output: Output = Field(default_factory=Output)

    @model_validator(mode="after")
    def _evaluation_needs_rows(self):
        if (self.training.eval_every is not None) != (self.data.validation_split > 0):
            raise ValueError("training.eval_every and data.validation_split belong together: set both or neither")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or f"outputs/{self.method}")

    @property
    def method(self) -> str:
        return next(name for name, kind in METHODS.items() if isinstance(self, kind))


class Sft(Section):
    length_weighting: Literal["token", "sequence"] = Field(
        "token", description="token: every token counts the same; sequence: every row does"
    )


class SftConfig(Config):
    sft: Sft = Field(default_factory=Sft)


class Dpo(Section):
    beta: float = Field(
        0.1, gt=0, description="how dearly the policy pays for leaving the reference; smaller moves further"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of wrong labels (conservative DPO)")
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="times the token-mean NLL of the chosen completions, added to the loss: keeps their probability from falling",
    )
    precompute: bool = Field(
        False, description="compute the reference's log-probs once before training, then free the reference"
    )


class DpoConfig(Config):
    model: ModelWithReference
    dpo: Dpo = Field(default_factory=Dpo)


class GrpoTraining(Training):
    batch_size: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description="completions per optimiser step; follows from grpo (prompts_per_step x group_size / minibatches), refused if it says otherwise",
    )


class Grpo(Section):
    prompts_per_step: int = Field(8, ge=1, description="prompts per rollout, all processes together")
    group_size: int = Field(
        8, ge=2, description="answers sampled to each prompt (G); 1 has nothing to be compared with"
    )
    max_new_tokens: int = Field(
        256, ge=1, description="longest answer; one that has not ended by then is truncated and flagged"
    )
    temperature: float = Field(
        1.0, gt=0, description="of sampling; policy, old and reference log-probs are all taken at it"
    )
    minibatches: int = Field(
        1, ge=1, description="optimiser steps per pass over a rollout, each with its own token total"
    )
    inner_epochs: int = Field(
        1, ge=1, description="passes over a rollout; above 1 the ratio leaves 1 and clipping begins to act"
    )
    clip_low: float = Field(0.2, ge=0, le=1, description="the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="and at 1 + clip_high (DAPO: 0.28, lets rare tokens grow)")
    kl_coef: float = Field(0.04, ge=0, description="weight of the KL penalty to the reference; 0: no reference is kept")
    kl_estimator: Literal["k3_is", "k3", "k2"] = Field(
        "k3_is", description="k3_is has the gradient of KL(policy||reference); k3 is the paper's (losses/kl.py)"
    )
    advantage: Literal["group", "leave_one_out"] = Field(
        "group", description="baseline: the group's mean, or the mean of the other answers"
    )
    advantage_scale: Literal["std", "none"] = Field(
        "std", description="divide by the group's standard deviation (GRPO) or not (Dr. GRPO)"
    )
    length_weighting: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: DAPO; sequence: GRPO's 1/|o_i|; constant: Dr. GRPO's 1/max_new_tokens (losses/weights.py)",
    )
    mask_truncated: bool = Field(
        False, description="leave truncated answers out of the loss (they keep their reward in the group's mean)"
    )
    reward: str | list[str] = Field(
        "answer",
        description="answer (the number after ####, or boxed, equals the row's `answer`), or package.module:function, or a list of these",
    )
    reward_weights: list[float] | None = Field(None, description="one weight per reward function; default 1 each")


class GrpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    grpo: Grpo = Field(default_factory=Grpo)

    @model_validator(mode="after")
    def _sizes_fit(self):
        g, t = self.grpo, self.training
        rows = g.prompts_per_step * g.group_size
        if rows % g.minibatches:
            raise ValueError(f"grpo.minibatches = {g.minibatches} does not divide the {rows} completions of a rollout")
        if t.batch_size not in (None, rows // g.minibatches):
            raise ValueError(
                f"training.batch_size = {t.batch_size}, but grpo gives {g.prompts_per_step} prompts x {g.group_size} answers / "
                f"{g.minibatches} minibatches = {rows // g.minibatches} completions per optimiser step: leave batch_size out, or change grpo"
            )
        if g.advantage == "leave_one_out" and g.advantage_scale != "none":
            raise ValueError(
                "grpo.advantage: leave_one_out is not divided by a standard deviation: set advantage_scale: none as well"
            )
        names = [g.reward] if isinstance(g.reward, str) else g.reward
        if not names:
            raise ValueError("grpo.reward names no reward function")
        if g.reward_weights is not None and len(g.reward_weights) != len(names):
            raise ValueError(
                f"grpo.reward_weights has {len(g.reward_weights)} entries for {len(names)} reward functions"
            )
        return self


class Stage(Section):
    config: str = Field(description="the stage's own config file, beside this one")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="keys of that file to change, e.g. training.max_steps: 20"
    )


class Ladder(Section):
    base: str = Field(
        "tiny-base",
        description="the model at the foot: tiny-base, or a folder made by python -m posttrain.tiny --seed N --out FOLDER",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="training.seed of every stage")
    sft: Stage = Field(default_factory=lambda: Stage(config="sft_tiny.yaml"), description="stage 1")
    dpo: Stage = Field(
        default_factory=lambda: Stage(config="dpo_tiny.yaml"), description="stage 2, from stage 1's model"
    )
    grpo: Stage = Field(
        default_factory=lambda: Stage(config="grpo_tiny.yaml"),
        description="stage 3, from stage 2's model, its adapter merged",
    )
    problems: int = Field(300, ge=1, le=400, description="held-out word problems to evaluate each stage on")
    identity: int = Field(100, ge=1, le=100, description="held-out identity questions")
    pass_at: int = Field(8, ge=1, description="samples per problem for pass@k and the KL column")


class LadderConfig(Section):
    ladder: Ladder = Field(default_factory=Ladder)
    output: Output = Field(default_factory=Output)

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or "outputs/ladder")

    @property
    def method(self) -> str:
        return "ladder"


METHODS: dict[str, type[Section]] = {"sft": SftConfig, "dpo": DpoConfig, "grpo": GrpoConfig, "ladder": LadderConfig}

_TRUNCATED = (
    "is refused in RL: a token sampled from a cut-off distribution has another log-probability than the trainer computes, "
    "so ratio and KL would be biased; use temperature alone"
)
REFUSED = {
    name: _TRUNCATED
    for name in ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
}
