"""What a run is told: keys, methods, loading, the command line. No torch."""

from posttrain.config.command_line import early_check
from posttrain.config.grpo import GrpoConfig
from posttrain.config.loading import load
from posttrain.config.methods import LadderConfig, RealConfig
from posttrain.config.preferences import DpoConfig, KtoConfig, SimpoConfig
from posttrain.config.rl import PpoConfig
from posttrain.config.supervised import DistillConfig, PretrainConfig, RewardConfig, SftConfig

__all__ = [
    "DistillConfig",
    "DpoConfig",
    "GrpoConfig",
    "KtoConfig",
    "LadderConfig",
    "PpoConfig",
    "PretrainConfig",
    "RealConfig",
    "RewardConfig",
    "SftConfig",
    "SimpoConfig",
    "early_check",
    "load",
]
