"""The run folder: what may be there already, what is removed, and where a resumed run goes on.

    config.yaml   metrics.jsonl   curves.png   samples.md   model/   checkpoints/step_N/

`model/` appears last and whole: its presence means "finished"."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from posttrain.config.loading import save
from posttrain.errors import UserError
from posttrain.run import checkpoint_files

WRITTEN = ("model", "model.part", "model.old", "start", "metrics.jsonl", "curves.png", "samples.md", "config.yaml", "checkpoints",
    "checkpoints.old", "logs")  # fmt: skip


def choose(config) -> Path | None:
    """The checkpoint to go on from (None: start at step 0). Nothing finished, and nothing begun, is overwritten
    unasked."""
    folder, there = config.folder, checkpoint_files.latest(config.folder)
    _refuse_no_run_folder(folder)
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


def _refuse_no_run_folder(folder: Path) -> None:
    """A typo must not turn somebody's folder into a run, which is written and, with --output.overwrite, cleared."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(
            f"output.dir {folder}: {nearest} is {'not writable' if nearest.is_dir() else 'a file'}: give another --output.dir"
        )
    inside = list(folder.iterdir()) if folder.is_dir() else []
    if (folder / "config.yaml").exists():
        return
    strange = [
        p.name for p in inside if p.name not in (*WRITTEN, "start.part") and (p.is_dir() or p.name == "config.json")
    ]
    if strange:
        raise UserError(
            f"output.dir {folder} is not the folder of a run (it holds {strange[0]}): give another --output.dir"
        )


def _refuse_sources_inside(config) -> None:
    sources = {
        "model.name": getattr(config.model, "name", None),  # loops.pretrain has none
        "model.adapter_path": getattr(config.model, "adapter_path", None),
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


def clear(config, resumed_from: Path | None, has_start: bool) -> None:
    """When model and data have loaded, and not before: what an older run wrote goes (of a resumed one: only the mark
    that it is finished). The checkpoints go first, all at once: a kill in here leaves no half of one that could be
    resumed.

    has_start: this run has written start.part, the merged model under its adapter."""
    folder, old = config.folder, config.folder / "checkpoints.old"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(
            f"output.dir {folder}: cannot be made ({problem.strerror}): give another --output.dir"
        ) from None
    _lock(folder)
    if resumed_from is None:
        shutil.rmtree(old, ignore_errors=True)
        if (folder / "checkpoints").exists():
            os.replace(folder / "checkpoints", old)
        for name in WRITTEN:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif (folder / "model").exists():
        shutil.rmtree(folder / "model.old", ignore_errors=True)
        os.replace(folder / "model", folder / "model.old")  # until put_model
    if has_start and not (folder / "start").exists():  # of a resumed run it is there, and has the fingerprint it had
        os.replace(folder / "start.part", folder / "start")
    shutil.rmtree(folder / "start.part", ignore_errors=True)
    save(config, folder / "config.yaml")


_locks: dict[Path, FileLock] = {}  # of this process: a second run in a notebook takes over the first one's


def lock_path(folder: Path) -> Path:
    """Outside the run folder, which holds what a run writes and nothing else."""
    name = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"posttrain-{getpass.getuser()}-{name}.lock"


def _lock(folder: Path) -> None:
    """One run writes here. The lock is the operating system's: it goes with the process, however that ends."""
    path = lock_path(folder)
    if path in _locks:
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another run is writing here: wait for it, or give another --output.dir") from None
    _locks[path] = lock


def unlock(folder: Path) -> None:
    if (lock := _locks.pop(lock_path(folder), None)) is not None:
        lock.release()
        lock_path(folder).unlink(missing_ok=True)


def put_model(folder: Path) -> None:
    """model.part -> model. Of a run that was resumed after its end, model.old goes only when the new one stands."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    os.replace(folder / "model.part", folder / "model")
    shutil.rmtree(folder / "model.old", ignore_errors=True)
