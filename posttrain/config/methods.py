"""Every method and its config class; the keys themselves stand in keys.py (shared), supervised.py and rl.py. And the
ladder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.config.keys import Output, Section
from posttrain.config.rl import GrpoConfig, PpoConfig
from posttrain.config.supervised import DpoConfig, PretrainConfig, RewardConfig, SftConfig


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


METHODS: dict[str, type[Section]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "reward": RewardConfig,
    "grpo": GrpoConfig,
    "ppo": PpoConfig,
    "ladder": LadderConfig,
}

_TRUNCATED = (
    "is refused in RL: a token sampled from a cut-off distribution has another log-probability than the trainer computes, "
    "so ratio and KL would be biased; use temperature alone"
)
REFUSED = {
    name: _TRUNCATED
    for name in ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
}
