"""The keys of loops that learn from rewards, and PPO's. grpo.py has GRPO's."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.keys import Config, ModelWithReference, PpoPreflight, Training
from posttrain.config.section import Section


class RlTraining(Training):
    batch_size: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description="completions per optimiser step; follows from the method's own keys (prompts_per_step, minibatches …), refused if it says otherwise",
    )


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

    @property
    def learns_from_rewards(self) -> bool:
        return True

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.learns_from_rewards and (self.reward is None) == (self.reward_model is None):
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


class Rollouts(Section):
    """How the sampler works. What it samples does not depend on it."""

    batch_rows: int | None = Field(
        None,
        ge=1,
        description="at most so many answers are sampled at once, per process, where memory is short; none: all of a rollout. The answers "
        "stay the same",
    )


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

    @property
    def dynamic_sampling(self) -> bool:
        """Every answer is learned from."""
        return False

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
    rollout: Rollouts = Field(default_factory=Rollouts)
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
