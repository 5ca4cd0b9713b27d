"""What a run is told: keys, methods, loading, the command line. No torch."""

from posttrain.config.loading import early_check, load
from posttrain.config.methods import (
    DpoConfig,
    GrpoConfig,
    LadderConfig,
    PpoConfig,
    PretrainConfig,
    RewardConfig,
    SftConfig,
)

__all__ = [
    "DpoConfig",
    "GrpoConfig",
    "LadderConfig",
    "PpoConfig",
    "PretrainConfig",
    "RewardConfig",
    "SftConfig",
    "early_check",
    "load",
]
