"""The keys of the loops that learn from rewards: GRPO and PPO."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.keys import Config, GrpoPreflight, ModelWithReference, PpoPreflight, SharingTraining, Training
from posttrain.config.section import Section


class RlTraining(Training):
    batch_size: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description="completions per optimiser step; follows from the method's own keys (prompts_per_step, minibatches …), refused if it says otherwise",
    )


class GrpoTraining(RlTraining, SharingTraining):
    """PPO has one answer to a prompt, and nothing to share."""


class Rewarded(Section):
    """Where the rewards of RL come from."""

    reward: str | list[str] | None = Field(
        None,
        description="answer (the number after ####, or boxed, equals the row's `answer`), or package.module:function, or a list of these",
    )
    reward_weights: list[float] | None = Field(None, description="one weight per reward function; default 1 each")
    reward_model: str | None = Field(
        None, description="or a learned reward: the folder of a model made by loops.reward, same vocabulary"
    )
    watch: str | list[str] | None = Field(
        None, description="reward functions that are only measured, not learned from: where over-optimisation shows"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.reward is None) == (self.reward_model is None):
            raise ValueError(
                "give either reward (functions) or reward_model (a folder), not "
                + ("both" if self.reward else "neither")
            )
        names = [self.reward] if isinstance(self.reward, str) else self.reward
        if names == []:
            raise ValueError("reward names no reward function")
        if self.reward_weights is not None and len(self.reward_weights) != len(names or []):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} entries for {len(names or [])} reward functions"
            )
        return self


class Grpo(Rewarded):
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
    kl_coef: float = Field(
        0.04,
        ge=0,
        description="weight of the KL penalty to the reference, in the loss: each token's own, at the state it was sampled in; "
        "0: no reference is kept",
    )
    kl_estimator: Literal["k3_is", "k3", "k2"] = Field(
        "k3_is",
        description="token by token, k3_is and k2 descend KL(policy||reference), k3 (the paper's) the other direction; none of them the "
        "KL of the whole answer (losses/kl.py)",
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

    reward: str | list[str] | None = Field("answer", description=Rewarded.model_fields["reward"].description)

    @model_validator(mode="before")
    @classmethod
    def _a_reward_model_takes_the_place_of_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("reward_model") is not None and "reward" not in values:
            return values | {"reward": None}
        return values


class GrpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    grpo: Grpo = Field(default_factory=Grpo)
    preflight: GrpoPreflight = Field(default_factory=GrpoPreflight)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
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
        return self


class Ppo(Rewarded):
    prompts_per_step: int = Field(128, ge=1, description="prompts per rollout, one answer each, all processes together")
    max_new_tokens: int = Field(
        256, ge=1, description="longest answer; one that has not ended by then is truncated and flagged"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling; all log-probs are taken at it")
    minibatches: int = Field(
        1, ge=1, description="optimiser steps per pass over a rollout, each with its own token total"
    )
    inner_epochs: int = Field(2, ge=1, description="passes over a rollout")
    clip_eps: float = Field(0.2, ge=0, le=1, description="the policy's ratio is clipped at 1 +/- clip_eps")
    value_clip_eps: float | None = Field(
        0.2, ge=0, description="a value may move this far from what it was at the rollout; none: no clip"
    )
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss beside the policy loss")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE: 1 trusts the rewards, 0 the value function")
    whiten: bool = Field(True, description="give the advantages of a rollout mean 0 and variance 1")
    critic: Literal["separate", "shared"] = Field(
        "separate",
        description="separate: a second network from the same start; shared: a value head on the policy's backbone",
    )
    critic_learning_rate: float | None = Field(
        None,
        gt=0,
        description="of the critic (or value head); default training.learning_rate. It has to keep up with the policy",
    )
    kl_coef: float = Field(
        0.05,
        ge=0,
        description="KL in the reward: every token pays this times its log-ratio to the reference, and is charged for what follows it "
        "too: the KL of the whole answer",
    )
    kl_loss_coef: float = Field(
        0.0,
        ge=0,
        description="KL in the loss (k3_is): each token's own, at the state it was sampled in; another gradient than kl_coef's "
        "(losses/kl.py); one of the two must be 0",
    )
    kl_target: float | None = Field(
        None, gt=0, description="adapt the coefficient until the KL is about this (nats per token); none: fixed"
    )
    truncated: Literal["penalty", "bootstrap"] = Field(
        "penalty",
        description="an answer that did not end: penalty gives it its score (or truncation_penalty) and nothing follows; bootstrap no "
        "score, but the value of its last state",
    )
    truncation_penalty: float | None = Field(
        None, description="truncated: penalty: this instead of the score of an answer that did not end"
    )

    @property
    def group_size(self) -> int:
        """Answers to a prompt. The baseline is the value function, so one is enough."""
        return 1

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.kl_coef > 0 and self.kl_loss_coef > 0:
            raise ValueError(
                f"kl_coef = {self.kl_coef:g} (in the reward) and kl_loss_coef = {self.kl_loss_coef:g} (in the loss): the KL would be paid "
                "twice; set one of them to 0"
            )
        if self.truncation_penalty is not None and self.truncated == "bootstrap":
            raise ValueError(
                "truncation_penalty with truncated: bootstrap would count the ending twice: use truncated: penalty"
            )
        if self.kl_target is not None and self.kl_coef == self.kl_loss_coef == 0:
            raise ValueError("kl_target needs a kl_coef (or kl_loss_coef) above 0 to begin with")
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide the {self.prompts_per_step} answers of a rollout"
            )
        return self


class PpoConfig(Config):
    model: ModelWithReference
    training: RlTraining = Field(default_factory=RlTraining)
    ppo: Ppo = Field(default_factory=Ppo)
    preflight: PpoPreflight = Field(default_factory=PpoPreflight)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.ppo.critic == "separate" and self.model.adapter_path is not None:
            raise ValueError(
                "ppo.critic: separate starts from model.name, not from model.adapter_path: use critic: shared, or give the adapter's folder "
                "as model.name"
            )
        rows = self.ppo.prompts_per_step // self.ppo.minibatches
        if self.training.batch_size not in (None, rows):
            raise ValueError(
                f"training.batch_size = {self.training.batch_size}, but ppo gives {self.ppo.prompts_per_step} answers / "
                f"{self.ppo.minibatches} minibatches = {rows} per optimiser step: leave batch_size out, or change ppo"
            )
        return self
