"""The keys of loops.grpo: GRPO and its variants, and what cannot be together."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.keys import Config, GrpoPreflight, ModelWithReference, SharingTraining
from posttrain.config.rl import Rewarded, RlTraining, Rollouts


class GrpoTraining(RlTraining, SharingTraining):
    """PPO has one answer to a prompt, and nothing to share."""


class Grpo(Rewarded):
    prompts_per_step: int = Field(8, ge=1, description="prompts per rollout, all processes together")
    group_size: int = Field(
        8, ge=1, description="answers sampled to each prompt (G); 1 has nothing to be compared with, but by a teacher"
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
    loss: Literal["grpo", "gspo", "cispo"] = Field(
        "grpo",
        description="grpo: a clipped ratio per token; gspo: one per answer, its geometric mean; cispo: a bounded weight per token, no "
        "update is dropped (losses/). With one update per rollout all ratios are 1, and the three are one",
    )
    clip_low: float | None = Field(
        None, ge=0, le=1, description="the ratio is clipped at 1 - clip_low; default 0.2, of gspo 3e-4; cispo has none"
    )
    clip_high: float | None = Field(
        None,
        ge=0,
        description="and at 1 + clip_high; default 0.2 (DAPO: 0.28, lets rare tokens grow), of gspo 4e-4, of cispo 4: a bound of 5",
    )
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
    advantage: Literal["group", "leave_one_out", "max_rl", "batch", "teacher"] = Field(
        "group",
        description="group: minus the group's mean; leave_one_out: minus the mean of the other answers (RLOO); max_rl: minus the mean, over "
        "the mean (rewards 0 or 1); batch: minus the mean, over the std of the whole rollout (REINFORCE++-baseline); teacher: of each token, "
        "by how much likelier a teacher finds it, without a reward (on-policy distillation)",
    )
    teacher: str | None = Field(
        None,
        description="advantage: teacher: the frozen model that is asked, at grpo.temperature: a hub id, a folder or an embedded name, with "
        "the same vocabulary",
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

    dynamic_sampling: bool = Field(
        False,
        description="DAPO: groups that are all right or all wrong are left out, and further prompts asked until the step is full; needs a "
        "verifiable reward (0 or 1, or -1 or 1) and training.max_steps",
    )
    max_resamples: int | None = Field(
        None,
        ge=1,
        description="dynamic_sampling: at most this many rollouts more for one step, default 4; then groups that teach nothing fill it up",
    )
    overlong_cache: int | None = Field(
        None,
        ge=1,
        description="DAPO's soft overlong punishment, added to the reward: over the last so many tokens before max_new_tokens it falls "
        "from 0 to -1 (L_cache in the paper, in some libraries a buffer); none: no punishment",
    )
    importance_weights: Literal["none", "truncated", "masked"] = Field(
        "none",
        description="for a sampler that is not the trainer: weigh each token's advantage with trainer/sampler, cut off at importance_cap, or "
        "0 outside importance_low ... importance_high (losses/mismatch.py); one more forward pass per rollout",
    )
    importance_cap: float | None = Field(None, gt=0, description="truncated: the largest weight, default 2")
    importance_low: float | None = Field(None, ge=0, description="masked: the lowest ratio that counts, default 0.5")
    importance_high: float | None = Field(None, gt=0, description="masked: the highest, default 5")
    importance_level: Literal["token", "sequence", "geometric"] | None = Field(
        None,
        description="masked: the ratio of each token (default), the product over the answer, or its geometric mean",
    )

    reward: str | list[str] | None = Field("answer", description=Rewarded.model_fields["reward"].description)

    @model_validator(mode="before")
    @classmethod
    def _a_reward_model_or_a_teacher_takes_the_place_of_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "reward" in values:
            return values
        other = values.get("reward_model") is not None or values.get("advantage") == "teacher"
        return values | {"reward": None} if other else values

    @property
    def learns_from_rewards(self) -> bool:
        return self.advantage != "teacher"

    @model_validator(mode="after")
    def _of_this_teacher(self) -> Self:
        if self.learns_from_rewards:
            if self.teacher is not None:
                raise ValueError(f"teacher = {self.teacher} is for advantage: teacher")
            if self.group_size == 1:
                raise ValueError(
                    "group_size = 1: one answer has nothing to be compared with (but by advantage: teacher)"
                )
            return self
        wants = "advantage: teacher"
        if self.teacher is None:
            raise ValueError(f"{wants} needs a teacher: the name of a model with the same vocabulary")
        for name in ("reward", "reward_model"):
            if (given := getattr(self, name)) is not None:
                raise ValueError(
                    f"{wants} learns from the teacher alone, and not from {name} = {given}: set {name}: null (watch measures without "
                    "being learned from)"
                )
        if self.dynamic_sampling:
            raise ValueError(
                f"{wants} says something of every token: there are no dead groups for dynamic_sampling to replace"
            )
        if self.overlong_cache is not None:
            raise ValueError(f"overlong_cache is added to a reward, and {wants} has none")
        if self.loss == "gspo":
            raise ValueError(
                f"loss: gspo has one ratio and one advantage per answer, and {wants} has one per token: set loss: grpo"
            )
        return self

    @model_validator(mode="after")
    def _of_this_loss(self) -> Self:
        if self.loss == "gspo" and self.length_weighting != "sequence":
            raise ValueError(
                f"loss: gspo gives every answer one vote, and length_weighting: {self.length_weighting} does not: set length_weighting: "
                "sequence as well"
            )
        if self.loss == "cispo" and self.clip_low is not None:
            raise ValueError(f"clip_low = {self.clip_low:g}: loss: cispo has no lower bound: set clip_low: null (none)")
        low, high = {"grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4), "cispo": (None, 4.0)}[self.loss]
        self.clip_low = low if self.clip_low is None else self.clip_low
        self.clip_high = high if self.clip_high is None else self.clip_high
        return self

    @model_validator(mode="after")
    def _of_this_reward(self) -> Self:
        wants = f"advantage: {self.advantage}"
        if self.advantage != "group" and self.advantage_scale != "none":
            raise ValueError(
                f"{wants} is not divided by a group's standard deviation: set advantage_scale: none as well"
            )
        if self.advantage == "max_rl" and self.reward_model is not None:
            raise ValueError(f"{wants} is for rewards of 0 and 1, and the scores of reward_model are graded")
        if self.advantage == "max_rl" and self.overlong_cache is not None:
            raise ValueError(f"{wants} is for rewards of 0 and 1, and overlong_cache makes graded ones of them")
        if self.dynamic_sampling and self.reward_model is not None:
            raise ValueError(
                "dynamic_sampling leaves out groups that are all right or all wrong, which the scores of reward_model do not tell: it needs "
                "a verifiable reward"
            )
        if self.dynamic_sampling:
            self.max_resamples = self.max_resamples or 4
        elif self.max_resamples is not None:
            raise ValueError(f"max_resamples = {self.max_resamples} is for dynamic_sampling: true")
        if self.overlong_cache is not None and self.overlong_cache > self.max_new_tokens:
            raise ValueError(
                f"overlong_cache = {self.overlong_cache} is more than the max_new_tokens = {self.max_new_tokens} that an answer may have"
            )
        return self

    @model_validator(mode="after")
    def _of_these_importance_weights(self) -> Self:
        defaults: dict[str, dict[str, Any]] = {
            "truncated": {"importance_cap": 2.0},
            "masked": {"importance_low": 0.5, "importance_high": 5.0, "importance_level": "token"},
        }
        for how, keys in defaults.items():
            for name, default in keys.items():
                given = getattr(self, name)
                if given is not None and how != self.importance_weights:
                    raise ValueError(f"{name} = {given} is for importance_weights: {how}")
                if given is None and how == self.importance_weights:
                    setattr(self, name, default)
        low, high = self.importance_low, self.importance_high
        if low is not None and high is not None and low > high:
            raise ValueError(f"importance_low = {low:g} is above importance_high = {high:g}")
        if self.loss == "gspo" and (self.importance_weights == "truncated" or self.importance_level == "token"):
            raise ValueError(
                f"loss: gspo has one ratio and one advantage per answer, and importance_weights: {self.importance_weights} weighs token by "
                "token: set importance_weights: masked with importance_level: sequence or geometric"
            )
        return self


class GrpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    grpo: Grpo = Field(default_factory=Grpo)
    rollout: Rollouts = Field(default_factory=Rollouts)
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
        if g.dynamic_sampling and t.max_steps is None:
            raise ValueError(
                "grpo.dynamic_sampling needs training.max_steps: how many prompts a step takes is not known, so epochs say nothing"
            )
        if not g.learns_from_rewards and t.best_metric == "reward_held_out":
            raise ValueError(
                "training.best_metric: reward_held_out: grpo.advantage: teacher has no reward; of grpo.watch: answer it is "
                "watched/answer_held_out"
            )
        if not g.learns_from_rewards and g.watch is None and self.data.validation_split:
            raise ValueError(
                "data.validation_split: grpo.advantage: teacher has no reward to measure on the prompts that are held out: give "
                "grpo.watch, or set it to 0"
            )
        return self
