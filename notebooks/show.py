"""How the notebooks show things: tokens in colour, curves, and a run without its log. Nothing here computes."""

import contextlib
import html
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML, display

COLOURS = {"prompt": "#dbe7f5", "completion": "#cdeccd", "padding": "#eeeeee"}
plt.rcParams.update({"figure.dpi": 62, "axes.grid": True, "grid.alpha": 0.25, "font.size": 9, "figure.constrained_layout.use": True})  # fmt: skip


def tokens(texts: Sequence[str], colours: Sequence[str], titles: Sequence[str] | None = None) -> None:
    """One coloured box a token; a title appears when the mouse is over it."""
    boxes = []
    for i, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        shown = html.escape(text).replace(" ", "␣").replace("\n", "⏎") or "∅"
        title = f' title="{html.escape(titles[i])}"' if titles else ""
        style = f"background:{colour};color:#000;padding:1px 2px;margin:1px;border-radius:3px;display:inline-block"
        boxes.append(f'<span{title} style="{style}">{shown}</span>' + ("<br>" if text.endswith("\n") else ""))
    display(HTML(f'<div style="font-family:monospace;line-height:1.7">{"".join(boxes)}</div>'))


def batch(inspection, row: int) -> None:
    """A row of an inspected batch: prompt, completion and padding in colour."""
    from posttrain.inspect_batch import kinds

    ids, kind = inspection.batch.input_ids[row].tolist(), kinds(inspection, row)
    texts = [inspection.tokenizer.decode([t]) if k != "padding" else "·" for t, k in zip(ids, kind, strict=True)]
    tokens(texts, [COLOURS[k] for k in kind])


def heat(texts: Sequence[str], values: Sequence[float | None], most: float) -> None:
    """Text as a heat map: white is 0, red is `most` nats; grey where there is no value."""
    shade = plt.get_cmap("Reds")
    colours = [
        "#eeeeee"
        if v is None
        else "#{:02x}{:02x}{:02x}".format(*(int(255 * c) for c in shade(min(v / most, 1) * 0.7)[:3]))
        for v in values
    ]
    tokens(texts, colours, ["" if v is None else f"{v:.2f} nats" for v in values])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    def cell(x: object) -> str:
        return f"{x:.4g}" if isinstance(x, float) else html.escape(str(x))

    head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{cell(x)}</td>" for x in row) + "</tr>" for row in rows
    )
    display(HTML(f"<table><tr>{head}</tr>{body}</table>"))


def curves(runs: dict[str, list[dict]], names: Sequence[str], method: str = "") -> None:
    """The metrics of one or more runs beside each other, with the line on what healthy looks like."""
    from posttrain.run.curves import legend

    _, axes = plt.subplots(1, len(names), figsize=(2.9 * len(names), 2.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for label, metrics in runs.items():
            rows = [row for row in metrics if name in row]
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], lw=1.3, label=label)
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel(legend(name, method), fontsize=7, color="0.4")
    if len(runs) > 1:
        axes[0][0].legend(fontsize=7)
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
