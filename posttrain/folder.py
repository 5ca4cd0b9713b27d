"""The run folder: what may be there already, what is removed, and where a resumed run goes on.

    config.yaml   metrics.jsonl   curves.png   samples.md   model/   checkpoints/step_N/

`model/` appears last and whole: its presence means "finished"."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from posttrain import checkpoints
from posttrain import config as configs
from posttrain.errors import UserError

WRITTEN = ("model", "model.part", "model.old", "start", "metrics.jsonl", "curves.png", "samples.md", "config.yaml", "checkpoints", "logs")  # fmt: skip


def choose(config) -> Path | None:
    """The checkpoint to go on from (None: start at step 0). Nothing finished, and nothing begun, is overwritten unasked."""
    folder, there = config.folder, checkpoints.latest(config.folder)
    if config.resume and config.output.overwrite:
        raise UserError(
            "--resume goes on with the run in the folder, --output.overwrite replaces it: give one of the two"
        )
    if not config.resume and not config.output.overwrite:
        if (folder / "model").exists():
            raise UserError(
                f"{folder} holds a finished run: give --output.overwrite to replace it, or another --output.dir"
            )
        if there is not None:
            raise UserError(
                f"{folder} holds a run that has come to {there.name.replace('_', ' ')}: give --resume to go on with it, "
                "--output.overwrite to replace it, or another --output.dir"
            )
    if config.resume and there is None and (folder / "model").exists():
        raise UserError(f"--resume: {folder} holds a finished run and no checkpoint to go on from")
    _refuse_sources_inside(config)
    return there if config.resume else None


def _refuse_sources_inside(config) -> None:
    sources = {
        "model.name": config.model.name,
        "model.adapter_path": config.model.adapter_path,
        "model.reference": getattr(config.model, "reference", None),
        "ppo.reward_model": getattr(getattr(config, "ppo", None), "reward_model", None),
    }
    names = config.data.name
    names = [names] if isinstance(names, str) else names or []
    for key, source in [*sources.items(), *(("data.name", name) for name in names)]:
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(config.folder.resolve()):
            raise UserError(
                f"{key} '{source}' lies in the run folder {config.folder}, which this run overwrites: give another --output.dir"
            )


def clear(config, resumed_from: Path | None) -> None:
    """When model and data have loaded, and not before: what an older run wrote goes (of a resumed one: nothing)."""
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    if resumed_from is None:
        for name in WRITTEN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (folder / "start.part").exists():
        shutil.rmtree(folder / "start", ignore_errors=True)
        os.replace(folder / "start.part", folder / "start")
    configs.save(config, folder / "config.yaml")


def metrics_until(folder: Path, step: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to a step; those that were written after the checkpoint are dropped from the file."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # the kill fell into this line
            break
        if row["step"] <= step:
            rows.append(row)
    return rows


def write_metrics(folder: Path, rows: list[dict[str, float]]) -> None:
    part = folder / "metrics.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(part, folder / "metrics.jsonl")


def put_model(folder: Path, part: Path) -> None:
    """model.part -> model, whole at every moment; of a run that was resumed after its end, the old one is replaced."""
    old = folder / "model.old"
    shutil.rmtree(old, ignore_errors=True)
    if (folder / "model").exists():
        os.replace(folder / "model", old)
    os.replace(part, folder / "model")
    shutil.rmtree(old, ignore_errors=True)
