"""Every method and its config class; the keys themselves stand in keys.py (shared), supervised.py,
preferences.py and rl.py. And the
ladder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from posttrain.config.grpo import GrpoConfig
from posttrain.config.keys import Output
from posttrain.config.preferences import DpoConfig, KtoConfig, SimpoConfig
from posttrain.config.rl import PpoConfig
from posttrain.config.section import Section, from_the_command_line
from posttrain.config.supervised import DistillConfig, PretrainConfig, RewardConfig, SftConfig


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
    ppo: Stage = Field(
        default_factory=lambda: Stage(config="ppo_tiny.yaml"), description="beside GRPO, from the same model"
    )
    best_of_k: Stage = Field(
        default_factory=lambda: Stage(config="sft_tiny.yaml", overrides={"training.learning_rate": 1e-3}),
        description="beside GRPO, from the same model: SFT on the right ones of pass_at sampled answers (rejection sampling)",
    )
    beside: list[Literal["ppo", "best_of_k"]] = Field(
        default_factory=list, description="stages to climb and report beside GRPO: ppo, best_of_k"
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


class Real(Section):
    model: str = Field("smollm2", description="the model to teach: smollm2, a hub id, or a folder of a chat model")
    old_name: str = Field("SmolLM", description="what it calls itself, if it calls itself anything")
    new_name: str = Field("Nova", description="the name that lesson 2 teaches")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="training.seed of every lesson, and of the data made for it")
    task: dict[str, Any] = Field(
        default_factory=lambda: {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1},
        description="the problems of lessons 1 and 3: arguments of reasoning-gym's chain_sum",
    )
    sums: int = Field(800, ge=1, description="lesson 1: worked problems to learn from")
    bare: float = Field(0.5, ge=0, le=1, description="lesson 1: share of them that show the result and no step")
    keep: int = Field(
        2, ge=0, description="lesson 1: of its own answers to each of 80 ordinary questions, how many to learn beside"
    )
    pairs: int = Field(6, ge=1, description="lesson 2: answers sampled to each of 60 questions about its name")
    sft: Stage = Field(default_factory=lambda: Stage(config="sft.yaml"), description="lesson 1")
    dpo: Stage = Field(
        default_factory=lambda: Stage(config="dpo.yaml"), description="lesson 2, from the model as it comes"
    )
    grpo: Stage = Field(
        default_factory=lambda: Stage(config="grpo.yaml"), description="lesson 3, from lesson 1's model"
    )
    problems: int = Field(200, ge=10, description="held-out problems to measure on")

    _typed = field_validator("task", mode="before")(from_the_command_line)


class RealConfig(Section):
    real: Real = Field(default_factory=Real)
    output: Output = Field(default_factory=Output)
    resume: bool = Field(False, exclude=True, description="go on where it was, between lessons and within one")

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or "outputs/real")

    @property
    def method(self) -> str:
        return "real"


METHODS: dict[str, type[Section]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "distill": DistillConfig,
    "dpo": DpoConfig,
    "simpo": SimpoConfig,
    "kto": KtoConfig,
    "reward": RewardConfig,
    "grpo": GrpoConfig,
    "ppo": PpoConfig,
    "ladder": LadderConfig,
    "real": RealConfig,
}


def module_of(method: str) -> str:
    """What is run: python -m MODULE. All methods are loops, but the one that runs loops and measures them."""
    return "posttrain.real" if method == "real" else f"loops.{method}"


_TRUNCATED = (
    "is refused in RL: a token sampled from a truncated distribution has a different log-probability from the one the trainer computes, "
    "so ratio and KL would be biased; use temperature alone"
)
REFUSED = {
    name: _TRUNCATED
    for name in ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
}
