"""The end of a run: the trained model first, then what is only looked at. Whatever the disk says, no weight that memory
holds is lost."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UserError, disk_reason, reason
from posttrain.run import checkpoint_files, folder, written
from posttrain.run.curves import plot_curves
from posttrain.run.samples import write_samples


def write(run: Any, samples: list[tuple[str, str, str]] | None, state: dict | None, own: Sequence[float] = ()) -> None:
    """samples.md, curves.png, and model/, which appears last and whole; but its weights are on the disk before them.

    state: the whole weights, of a model that is sharded. A disk that is full or gone: the model is written to the temp
    folder, and UserError says where."""
    at = run.folder

    def fill(part: Path) -> None:
        run.save(run.model, run.tokenizer, part, state)

    try:
        written.note(at, "model.part/*")
        fill(at / "model.part")
        for lines in (run.metrics_file, run.rollouts_file):
            lines.add()  # what a full disk has held back
        if samples:
            _draw(run, at / "samples.md", lambda path: write_samples(path, samples, run.config.method))
        _draw(run, at / "curves.png", lambda path: plot_curves(path, run.metrics, run.config.method, own))
        folder.put_model(at)
    except Exception as problem:
        if (why := disk_reason(problem)) is None:
            raise
        with contextlib.suppress(OSError):
            written.remove(at, "model.part")
            folder.put_back_model(at)
        raise UserError(
            f"{at / 'model'}: the trained model cannot be written ({why}){_elsewhere(fill, checkpoint_files.latest(at))}"
        ) from None


def tell(run: Any, encoded: Any) -> None:
    """What has come of it. encoded: the rows, of which a stream tells now what it has left out."""
    if encoded is not None and not isinstance(encoded.items, list):
        run.say(encoded.summary())
    seconds = time.perf_counter() - run.started
    run.say(
        f"{run.config.method}: {run.step} step{'s' * (run.step != 1)} in {seconds:.1f} s{run.checkpoints.tell_best()}"
    )
    folder.unlock(run.folder)
    run.say(f"wrote {run.folder}/: {', '.join(sorted(p.name + '/' * p.is_dir() for p in run.folder.iterdir()))}")


def _elsewhere(fill: Callable[[Path], None], last: Path | None) -> str:
    """Where the trained model is now, or why it is nowhere. last: the last checkpoint."""
    place = None
    try:
        place = Path(tempfile.mkdtemp(prefix="posttrain-")) / "model"
        fill(place)
        return f". It is in {place} instead, whole: move it where you want it"
    except Exception as problem:
        if (why := disk_reason(problem)) is None:
            raise
        if place is not None:
            shutil.rmtree(place.parent, ignore_errors=True)
    rest = f"make room, and go on from {last} with --resume" if last else "there is no checkpoint: it is lost"
    return f", nor in the temp folder {tempfile.gettempdir()} ({why}): {rest}"


def _draw(run: Any, path: Path, draw: Callable[[Path], None]) -> None:
    """A picture or a text that fails is told of and passed over: the model must not be lost over it."""
    try:
        draw(path)
    except Exception as problem:
        run.say(
            f"warning: {path} is left out ({disk_reason(problem) or f'{type(problem).__name__}: {reason(problem)}'})"
        )
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # half of one
