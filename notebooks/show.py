"""How the notebooks show things: tokens in colour, curves, and a run without its log. Nothing here computes.

Everything coloured is a picture, because pages that host code strip the colours of HTML. Outside a notebook (`python
notebooks/04_grpo.py`, no IPython needed) tables are printed, and pictures are written to outputs/notebooks/.
"""

import contextlib
import html
import io
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

try:
    from IPython import get_ipython
    from IPython.display import HTML, display

    IN_A_NOTEBOOK = get_ipython() is not None
except ModuleNotFoundError:
    IN_A_NOTEBOOK = False

COLOURS = {"prompt": "#dbe7f5", "completion": "#cdeccd", "padding": "#eeeeee"}
SHARES = ("accuracy", "validation_accuracy", "dead_groups", "finished", "p_stop")  # drawn on 0 … 1
DPI, WIDE = 110, 88  # characters in a line of tokens
plt.rcParams.update({"figure.dpi": DPI, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9, "figure.constrained_layout.use": True})  # fmt: skip


def _save_and_say(**_: object) -> None:
    """plt.show() of a script: every open picture into a file."""
    folder = Path("outputs/notebooks")
    folder.mkdir(parents=True, exist_ok=True)
    for number in plt.get_fignums():
        file = folder / f"{Path(sys.argv[0]).stem}_{len(_said) + 1:02}.png"
        plt.figure(number).savefig(file, dpi=DPI)
        plt.close(number)
        _said.append(file)
        print(f"[picture: {file}]")


_said: list[Path] = []
if not IN_A_NOTEBOOK:
    matplotlib.use("Agg")
    plt.show = _save_and_say


def tokens(texts: Sequence[str], colours: Sequence[str], under: Sequence[str] | None = None) -> None:
    """One coloured box a token, with a small line under it if `under` has one."""
    lines: list[list[tuple[str, str, str]]] = [[]]
    used = 0
    for text, colour, below in zip(texts, colours, under or [""] * len(texts), strict=True):
        shown = text.replace(" ", "␣").replace("\n", "⏎") or "∅"
        width = max(len(shown), len(below)) + 1
        if used + width > WIDE:
            lines.append([])
            used = 0
        lines[-1].append((shown, colour, below))
        used += width
        if text.endswith("\n"):
            lines.append([])
            used = 0
    lines = [line for line in lines if line]
    high = 1.9 if under else 1.25
    figure = plt.figure(figsize=(8.2, 0.22 * high * len(lines) + 0.06), layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDE + 1), ylim=(-high * len(lines), 0))
    axis.axis("off")
    for row, line in enumerate(lines):
        x = 0.3
        for shown, colour, below in line:
            width = max(len(shown), len(below))
            box = plt.Rectangle((x, -high * row - 1.1), width + 0.7, 1.05, facecolor=colour, edgecolor="white", lw=1)
            axis.add_patch(box)
            at = x + (width + 0.7) / 2
            axis.text(at, -high * row - 0.6, shown, family="monospace", fontsize=7.6, ha="center", va="center")
            axis.text(
                at, -high * row - 1.42, below, family="monospace", fontsize=6, ha="center", va="center", color="0.35"
            )
            x += width + 1
    plt.show()


def batch(inspection, row: int) -> None:
    """A row of an inspected batch: prompt (blue), completion (green) and padding (grey)."""
    from posttrain.inspect_batch import kinds

    ids, kind = inspection.batch.input_ids[row].tolist(), kinds(inspection, row)
    texts = [inspection.tokenizer.decode([t]) if k != "padding" else "·" for t, k in zip(ids, kind, strict=True)]
    tokens(texts, [COLOURS[k] for k in kind])


def heat(texts: Sequence[str], values: Sequence[float | None], most: float) -> None:
    """Text as a heat map with the number under each token: white is 0, red is `most` or more; grey has no value."""
    shade = plt.get_cmap("Reds")
    colours = [
        "#eeeeee"
        if v is None
        else "#{:02x}{:02x}{:02x}".format(*(int(255 * c) for c in shade(min(v / most, 1) * 0.7)[:3]))
        for v in values
    ]
    tokens(texts, colours, ["" if v is None else f"{v:.1f}" for v in values])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    def cell(x: object) -> str:
        return f"{x:.4g}" if isinstance(x, float) else str(x)

    if not IN_A_NOTEBOOK:
        lines = [list(header), *([cell(x) for x in row] for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        print("\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines))
        return
    head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell(x))}</td>" for x in row) + "</tr>"
        for row in rows
    )
    display(HTML(f"<table><tr>{head}</tr>{body}</table>"))


def curves(
    runs: dict[str, list[dict]], names: Sequence[str], method: str = "", here: dict[str, tuple[int, str]] | None = None
) -> None:
    """The metrics of one or more runs beside each other, with the line on what healthy looks like.

    here: {metric: (step, words)}: an arrow at that step of the last run, where the sign is."""
    from posttrain.run.curves import legend

    _, axes = plt.subplots(1, len(names), figsize=(2.9 * len(names), 2.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for label, metrics in runs.items():
            rows = [row for row in metrics if name in row]
            few = "o-" if len(rows) < 8 else "-"
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], few, ms=3, lw=1.3, label=label)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel(textwrap.fill(legend(name, method), 42), fontsize=8, color="0.3")
        if name in SHARES:
            axis.set_ylim(-0.03, 1.03)
        if here and name in here and (rows := [row for row in rows if row["step"] >= here[name][0]]):
            spot = (rows[0]["step"], rows[0][name])
            (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
            late = spot[0] > (left + right) / 2  # the words stand on the side that has room
            at = (-12 if late else 22, 38 if spot[1] < (low + high) / 2 else -38)
            words = {"fontsize": 8, "ha": "right" if late else "left", "arrowprops": {"arrowstyle": "->"}}
            axis.annotate(
                here[name][1], spot, at, textcoords="offset points", bbox={"fc": "white", "ec": "0.6"}, **words
            )
    if len(runs) > 1:
        axes[0][0].legend(fontsize=8)
    plt.show()


@contextlib.contextmanager
def quietly() -> Iterator[str]:
    """A run folder of its own, and no log in the notebook; the folder is removed afterwards."""
    folder = tempfile.mkdtemp()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
