"""Exercises that test themselves.

python -m posttrain.exercises                  the list
python -m posttrain.exercises dpo --start      a file of losses/ without the lines that are the loss, into this folder
python -m posttrain.exercises dpo --check      the loss's own tests on your file; what fails, in words
python -m posttrain.exercises dpo --show       the lines that were cut out
python -m posttrain.exercises hunt-3 --start   a loop on one page with one mistake in it, and its curves
python -m posttrain.exercises hunt-3 --check   does your mended page take the steps of the sound one?
python -m posttrain.exercises hunt-3 --show    what the mistake is, and what gives it away
"""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.errors import UserError, clear_exit, writing
from posttrain.exercises.blanks import BLANKS, Blank
from posttrain.exercises.hunts import HUNTS, Hunt

ALL = {exercise.name: exercise for exercise in [*BLANKS, *HUNTS]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.exercises", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exercise", nargs="?", metavar="NAME", help="which one; without it, the list")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--start", action="store_true", help="write its file into this folder; never over one that is there"
    )
    what.add_argument("--check", action="store_true", help="try your file")
    what.add_argument("--show", action="store_true", help="print the answer")
    parser.add_argument("--file", metavar="PATH", help="your file, if it is not the one that --start writes")
    options = parser.parse_args(arguments)
    with clear_exit():
        if options.exercise is None:
            if options.start or options.check or options.show or options.file:
                raise UserError("which exercise? python -m posttrain.exercises prints the list")
            print("\n".join(listed()))
            return
        if options.exercise not in ALL:
            raise UserError(f"no exercise {options.exercise!r}; there are {', '.join(ALL)}")
        exercise = ALL[options.exercise]
        file = Path(options.file or file_of(exercise))
        if options.start:
            lines = start(exercise, file)
        elif options.check:
            lines, solved = check(exercise, file)
            print("\n".join(lines))
            raise SystemExit(0 if solved else 1)
        elif options.show:
            lines = [exercise.answer() if isinstance(exercise, Blank) else exercise.told]
        else:
            raise UserError(f"{exercise.name}: say --start, --check or --show")
        print("\n".join(lines))


def file_of(exercise: Blank | Hunt) -> str:
    name = exercise.name.replace("-", "_")
    return f"my_{name}.py" if isinstance(exercise, Blank) else f"{name}.py"


def listed() -> list[str]:
    lines = ["Write the loss (its own tests tell you):"]
    lines += [f"  {b.name:<11} {b.task} ({b.minutes} minutes)" for b in BLANKS]
    lines += ["", "Find the mistake (one in each page; 10 to 20 minutes):"]
    lines += [f"  {h.name:<11} {h.page}: “{h.symptom}”" for h in HUNTS]
    return [*lines, "", "python -m posttrain.exercises NAME --start, then --check, then --show"]


def start(exercise: Blank | Hunt, file: Path) -> list[str]:
    """Write the file, and of a hunt the curves; what to do next."""
    picture = file.with_suffix(".png")
    for there in (file, *[picture] * isinstance(exercise, Hunt)):
        if there.exists():
            raise UserError(f"{there} is there already, and is not overwritten: move it away, or --file another")
    if isinstance(exercise, Blank):
        with writing(file):
            file.write_text(exercise.stub(), encoding="utf-8")
        return [f"wrote {file}: fill in YOUR LINES, then python -m posttrain.exercises {exercise.name} --check"]
    with writing(file):
        file.write_text(exercise.text(), encoding="utf-8")
        draw(exercise, picture)
    return [
        f"wrote {file} and {picture}: find the mistake, mend it, then python -m posttrain.exercises {exercise.name} --check"
    ]


def check(exercise: Blank | Hunt, file: Path) -> tuple[list[str], bool]:
    """(what to print, whether it is solved)."""
    if not file.exists():
        raise UserError(f"{file}: no such file; python -m posttrain.exercises {exercise.name} --start writes it")
    if isinstance(exercise, Hunt):
        from posttrain.exercises.mended import compare

        return compare(exercise.page, file)
    from posttrain.exercises import trial

    found = trial.outcomes(exercise.module, exercise.functions, file, exercise.purity)
    return trial.told(found), all(outcome.passed for outcome in found)


def draw(hunt: Hunt, picture: Path) -> None:
    """The recorded curves of the page with its mistake over those of the sound one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sound, sick = hunt.curves()
    names = [name for name in sound[0] if name not in ("step", "rollout")]
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for label, rows in (("sound", sound), ("yours", sick)):
            axis.plot(range(1, len(rows) + 1), [row[name] for row in rows], lw=1.4, label=label)
        axis.set(title=name, xlabel="rollout" if "rollout" in sound[0] else "step")
        axis.grid(alpha=0.25)
    axes[0][0].legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
