"""The stages of loops.ladder and the lessons of posttrain.real, each with a config file of its own; and what a command
needs beyond valid keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain import ROOT
from posttrain.config.loading import load
from posttrain.errors import UserError

SEVERAL = ("ladder", "real")  # methods that run others, one after the other


def refuse_incomplete(config: Any) -> None:
    """What a command needs beyond valid keys: rows to read (from Python they may be given), or the configs of its
    stages."""
    if config.method in SEVERAL:
        for stage in ("sft", "dpo", "grpo", *(config.ladder.beside if config.method == "ladder" else ())):
            stage_config(config, stage, "tiny-base")
    elif config.data.name is None:
        raise UserError(
            "1 problem in the configuration\n  'data.name' is missing: give it in the file or as --data.name VALUE"
        )


def stage_config(config: Any, name: str, start: str, more: dict[str, Any] | None = None) -> Any:
    """A stage's own config: its YAML, its overrides, and what makes it a stage: where it starts, its seed, its folder.

    more: what a command adds to that."""
    several = getattr(config, config.method)
    stage = getattr(several, name)
    path = Path(stage.config)
    if not path.is_file():
        path = ROOT / "configs" / stage.config
    fixed = {
        "model.name": start,
        "training.seed": several.seed,
        "output.dir": str(config.folder / name),
        "output.overwrite": True,
    }
    return load(
        path,
        stage.overrides | fixed | (more or {}),
        method="sft" if name == "best_of_k" else name,
        origin=f"{config.method}.{name}.overrides",
    )
