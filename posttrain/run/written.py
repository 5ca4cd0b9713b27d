"""What a run has written into its folder, noted there, so that nothing else is ever removed.

    written.json   {"by": "posttrain", "files": ["config.yaml", "model/config.json", "checkpoints/step_8.part/*", …]}

A folder without this note is not the folder of a run, whatever it holds. A file is noted before it gets its name, and
what is being written by its folder: a kill at any moment leaves nothing behind that looks like a stranger's."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NOTE, PART = "written.json", "written.json.part"
BEGINNING = b'{\n "by": "posttrain",'


def noted(folder: Path) -> list[str] | None:
    """The files that a run has written here, relative to the folder; None: no run has."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        ours = note["by"] == "posttrain" and not (folder / NOTE).is_symlink()
        return [str(name) for name in note["files"]] if ours else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or a file of somebody else's
        return None


def begun(folder: Path) -> bool:
    """Has a kill left the first note of a run half written? It is then all that the run has written."""
    part = folder / PART
    return part.is_file() and not part.is_symlink() and BEGINNING.startswith(part.read_bytes()[: len(BEGINNING)])


def note(folder: Path, *names: str) -> None:
    """These are the run's own from here on; "model.part/*" is all that comes into being below it. What is gone from the
    folders is forgotten: what stands there later is another's."""
    before = noted(folder)
    kept = [n for n in before or [] if "/" not in n or os.path.lexists(folder / n.partition("/*")[0])]
    files = sorted({NOTE, PART, *kept, *names})
    if files == before:
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / PART
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"by": "posttrain", "files": files}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / NOTE)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def stranger(folder: Path, name: str) -> Path | None:
    """The first file at folder/name, or below it, that no run has written; a link is never a run's."""
    ours = noted(folder) or []

    def is_ours(path: Path) -> bool:
        rel = path.relative_to(folder).as_posix()
        return any(rel == file or ("*" in file and fnmatch.fnmatchcase(rel, file)) for file in ours)

    return next((p for p in _walk(folder / name) if p.is_symlink() or not (p.is_dir() or is_ours(p))), None)


def _walk(top: Path) -> Iterator[Path]:
    if os.path.lexists(top):
        yield top
        if top.is_dir() and not top.is_symlink():
            yield from sorted(top.rglob("*"))


def remove(folder: Path, name: str) -> bool:
    """Remove folder/name if a run has written all of it; else leave all of it, and return False."""
    if stranger(folder, name) is not None:
        return False
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def rename(folder: Path, name: str, new: str) -> None:
    """The folder folder/name -> folder/new, all at once; what is the run's own in it stays so."""
    below = (path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*") if not path.is_dir())
    note(folder, *(f"{new}/{path}" for path in below if stranger(folder, f"{name}/{path}") is None))
    os.replace(folder / name, folder / new)
