"""Each method's own keys, and the config class that puts them beside the shared ones (keys.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.keys import Config, Data, Model, Output, Section, Training


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
    length_weighting: Literal["token", "sequence"] = Field(
        "token", description="token: every token counts the same; sequence: every row does"
    )


class SftConfig(Config):
    data: SftData = Field(default_factory=SftData)
    training: SftTraining = Field(default_factory=SftTraining)
    sft: Sft = Field(default_factory=Sft)

    @model_validator(mode="after")
    def _packed_rows_are_not_rows(self):
        if self.training.packing and self.sft.length_weighting == "sequence":
            raise ValueError(
                "training.packing lays several rows into one: sft.length_weighting: sequence needs them apart"
            )
        return self


class ModelWithReference(Model):
    reference: str = Field(
        "auto",
        description="the frozen reference: copy (of what is trained, as it was at step 0), adapter_off (the policy without its fresh "
        "adapter: no copy at all), a model name or folder, or auto (adapter_off with a fresh adapter, else copy)",
    )

    @model_validator(mode="after")
    def _adapter_off_needs_an_adapter(self):
        if self.reference == "adapter_off" and self.adapter != "lora":
            raise ValueError(
                "reference: adapter_off needs adapter: lora (without an adapter there is nothing to switch off; use copy)"
            )
        if self.reference == "adapter_off" and self.adapter_path is not None:
            raise ValueError(
                "reference: adapter_off with adapter_path: without its adapter the policy is not what it was at step 0; use auto or copy"
            )
        return self


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

    @model_validator(mode="after")
    def _a_stream_has_no_index(self):
        if self.dpo.precompute and self.data.streaming:
            raise ValueError("dpo.precompute goes through all rows beforehand: leave it out with data.streaming")
        return self


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
