"""The keys of the loops that learn from rows: pretraining, SFT, distillation, reward models."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from posttrain.config.keys import (
    Config,
    Data,
    RewardPreflight,
    RunConfig,
    SftPreflight,
    SharingTraining,
    Training,
)
from posttrain.config.section import Section, from_the_command_line


class Scratch(Section):
    """A model of random weights."""

    type: str = Field("llama", description="the architecture, as transformers calls it (model_type)")
    shape: dict[str, Any] = Field(
        description="keys of its transformers config, e.g. hidden_size, num_hidden_layers; the vocabulary's size is the tokenizer's"
    )
    tokenizer: str = Field(description="tiny (the embedded one), a hub id, or a folder")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type. The weights stay float32; auto: bf16 autocast on a GPU that has bf16, else float32",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep fewer activations, compute them again in the backward pass: less memory, same gradients",
    )

    _typed = field_validator("shape", mode="before")(from_the_command_line)


class Text(Section):
    name: str | None = Field(
        None, description="tiny-text (endless), or a file, folder or hub set with a column `text`, read in its order"
    )
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="which split of it")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="tiny-text: what is written")
    max_length: int = Field(1024, ge=2, description="tokens per row: documents are laid end to end and cut into these")


class PretrainTraining(Training):
    max_steps: int = Field(
        ge=1, description="stop after this many optimiser steps: the text is read again as often as it takes"
    )
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(  # type: ignore[assignment]
        "wsd", description="how it falls; wsd: a plateau over 30 % of the run, then straight down to 5 % of the peak"
    )
    betas: list[float] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="AdamW's, of the gradient's mean and of its square"
    )
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="what weight_decay acts on; all: biases and norms, too"
    )


class Pretrain(Section):
    separator: str | None = Field(
        None, description="the token that stands behind every document; default the tokenizer's eos"
    )
    check: str | None = Field(
        None, description="package.module:function, called with (model, tokenizer) at the end; gives a number"
    )
    min_score: float = Field(0.0, description="check: below this the run fails and nothing is saved")


class PretrainConfig(RunConfig):
    model: Scratch
    data: Text = Field(default_factory=Text)
    training: PretrainTraining
    pretrain: Pretrain = Field(default_factory=Pretrain)

    @model_validator(mode="after")
    def _nothing_is_evaluated(self) -> Self:
        if self.training.eval_every is not None or self.training.best_metric is not None:
            raise ValueError(
                "training.eval_every and best_metric: loops.pretrain evaluates nothing; see pretrain.check"
            )
        return self


class SftData(Data):
    train_on: Literal["all", "last"] = Field(
        "all", description="of a conversation, learn every assistant turn, or only the last"
    )


class SftTraining(Training):
    packing: bool = Field(
        False,
        description="lay the rows of a step end to end in rows of data.max_length tokens, each seeing only itself: same loss, no padding; "
        "micro_batch_size then counts packed rows",
    )


class Sft(Section):
    loss: Literal["nll", "dft"] = Field(
        "nll", description="nll: cross-entropy; dft: each token's times its own probability (dynamic fine-tuning)"
    )
    length_weighting: Literal["token", "sequence"] = Field(
        "token", description="token: every token counts the same; sequence: every row does"
    )


class SftConfig(Config):
    data: SftData = Field(default_factory=SftData)
    training: SftTraining = Field(default_factory=SftTraining)
    sft: Sft = Field(default_factory=Sft)
    preflight: SftPreflight = Field(default_factory=SftPreflight)

    @model_validator(mode="after")
    def _packed_rows_are_not_rows(self) -> Self:
        if self.training.packing and self.sft.length_weighting == "sequence":
            raise ValueError(
                "training.packing lays several rows into one: sft.length_weighting: sequence needs them apart"
            )
        return self


class Distill(Section):
    teacher: str = Field(
        description="the model to learn from: a hub id, a folder or an embedded name, with the same vocabulary; it is frozen"
    )
    mixture: float = Field(
        0.5,
        ge=0,
        le=1,
        description="0: KL(teacher||student), cover all that the teacher may say; 1: KL(student||teacher), say only what it would; between: "
        "GKD's beta. The loss jumps at both ends (losses/distill.py)",
    )
    temperature: float = Field(1.0, gt=0, description="divides both models' logits, and is that of sampling")
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of each step's rows whose answer the student samples itself in place of the given one; 1: the rows may be prompts "
        "alone, as for loops.grpo",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="on_policy: longest sampled answer; default 256")

    @model_validator(mode="after")
    def _sampling_needs_a_share(self) -> Self:
        if self.max_new_tokens is not None and not self.on_policy:
            raise ValueError(
                "distill.max_new_tokens belongs to distill.on_policy: nothing is sampled with a share of 0: leave it out"
            )
        if self.on_policy and self.max_new_tokens is None:
            self.max_new_tokens = 256
        return self


class DistillConfig(Config):
    data: SftData = Field(default_factory=SftData)
    distill: Distill
    preflight: SftPreflight = Field(default_factory=SftPreflight)


class Reward(Section):
    loss: Literal["preference", "outcome"] = Field(
        "preference",
        description="preference: chosen above rejected (Bradley-Terry); outcome: right or wrong (rows prompt, completion, label)",
    )
    margin: float = Field(0.0, ge=0, description="preference: how much higher the chosen score has to be")
    center_coef: float = Field(
        0.0,
        ge=0,
        description="preference: times (chosen + rejected score)^2, which puts the mean score at 0; e.g. 0.01",
    )


class RewardConfig(Config):
    training: SharingTraining = Field(default_factory=SharingTraining)
    reward: Reward = Field(default_factory=Reward)
    preflight: RewardPreflight = Field(default_factory=RewardPreflight)

    @model_validator(mode="after")
    def _what_the_loss_uses(self) -> Self:
        if self.reward.loss == "outcome" and (self.reward.margin or self.reward.center_coef):
            raise ValueError(
                "reward.margin and reward.center_coef belong to loss: preference; an outcome score has its own zero"
            )
        if self.model.adapter_path is not None:
            raise ValueError(
                "model.adapter_path: a reward model takes a fresh adapter; give the adapter's folder as model.name"
            )
        return self
