"""The run folder: what may be there already, what is removed, and where a resumed run goes on.

    config.yaml   metrics.jsonl   rollouts.jsonl   curves.png   samples.md   model/   checkpoints/step_N/   written.json

`model/` appears last and whole: its presence means "finished". written.json says what the run has written (written.py):
a folder without it is not touched, and in one with it nothing else is."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from posttrain.config.loading import save
from posttrain.errors import UserError, writing
from posttrain.run import checkpoint_files, written

FILES = ("config.yaml", "metrics.jsonl", "rollouts.jsonl", "curves.png", "samples.md")
NAMES = ("checkpoints", "checkpoints.old", "model", "model.part", "model.old", "start", "start.part", "logs", *FILES)


def choose(config) -> Path | None:
    """The checkpoint to go on from (None: start at step 0). Nothing finished, and nothing begun, is overwritten
    unasked."""
    folder, there = config.folder, checkpoint_files.latest(config.folder)
    _refuse_unusable(folder)
    refuse_strangers(folder, config.resume)
    if config.resume and config.output.overwrite:
        raise UserError(
            "--resume goes on with the run in the folder, --output.overwrite replaces it: give one of the two"
        )
    if (folder / "report.md").exists() and "report.md" in (written.noted(folder) or []):
        raise UserError(f"{folder} holds a ladder: give another --output.dir")
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


def _refuse_unusable(folder: Path) -> None:
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(
            f"output.dir {folder}: {nearest} is {'not writable' if nearest.is_dir() else 'a file'}: give another --output.dir"
        )


def refuse_strangers(folder: Path, resume: bool = False, names: tuple[str, ...] = NAMES) -> None:
    """A typo must not turn somebody's folder into a run, which is written and, with --output.overwrite, cleared: what
    stands where a run writes has been written by one. (Of a resumed run, a checkpoint that was not is left alone.)"""
    if not folder.is_dir():
        return
    if written.noted(folder) is None:
        ours = (*names, written.NOTE, *([] if written.begun(folder) else [written.PART]), "config.json")
        strange = sorted(path.name for path in folder.iterdir() if path.name in ours or path.is_dir())
        if strange:
            raise UserError(
                f"output.dir {folder} is not the folder of a run (it holds {strange[0]}): no run has left its {written.NOTE} "
                "there, so nothing in it is touched. Give another --output.dir"
            )
        return
    for name in names:
        if name.partition(".")[0] == "checkpoints" and resume:
            continue
        if (path := written.stranger(folder, name)) is not None:
            raise UserError(
                f"{path} stands where a run writes, and was not written by the run in {folder}: move it elsewhere, or give another "
                "--output.dir"
            )


def _refuse_sources_inside(config) -> None:
    sources = {
        "model.name": getattr(config.model, "name", None),  # loops.pretrain has none
        "model.adapter_path": getattr(config.model, "adapter_path", None),
        "model.reference": getattr(config.model, "reference", None),
        f"{config.method}.reward_model": getattr(getattr(config, config.method, None), "reward_model", None),
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
    folder = config.folder
    with writing(f"output.dir {folder}", ": give another --output.dir"):
        folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    refuse_strangers(folder, resumed_from is not None)
    with writing(folder):
        if resumed_from is None:
            written.remove(folder, "checkpoints.old")
            if (folder / "checkpoints").exists():
                written.rename(folder, "checkpoints", "checkpoints.old")
            for name in NAMES:
                if name != "start.part":
                    written.remove(folder, name)
        elif (folder / "model").exists():
            written.remove(folder, "model.old")
            written.rename(folder, "model", "model.old")  # until put_model
        # of a resumed run it is there, and has the fingerprint it had
        if has_start and not (folder / "start").exists():
            written.rename(folder, "start.part", "start")
        written.remove(folder, "start.part")
        written.note(folder, *FILES)
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
        with writing(path):
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another run is writing here: wait for it, or give another --output.dir") from None
    _locks[path] = lock


def unlock(folder: Path) -> None:
    if (lock := _locks.pop(lock_path(folder), None)) is not None:
        lock.release()
        lock_path(folder).unlink(missing_ok=True)


def write_start(folder: Path, save: Callable[[Path], None]) -> None:
    """start.part, which `clear` gives its name: a full model for a new adapter to sit on, written while one loads."""
    part = folder / "start.part"
    with writing(part):
        try:
            written.remove(folder, "start.part")
            written.note(folder, "start.part/*")
            save(part)
        except Exception:
            written.remove(folder, "start.part")
            raise


def put_model(folder: Path) -> None:
    """model.part -> model. Of a run that was resumed after its end, model.old goes only when the new one stands."""
    written.remove(folder, "model")
    written.rename(folder, "model.part", "model")
    written.remove(folder, "model.old")


def put_back_model(folder: Path) -> None:
    """model.old -> model, where no new one could be written."""
    if (folder / "model.old").exists() and not (folder / "model").exists():
        written.rename(folder, "model.old", "model")
