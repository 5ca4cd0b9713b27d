"""notebooks/NN_name.py (read, written and compared) -> notebooks/NN_name.ipynb (executed, with outputs and plots).

python notebooks/build.py            all of them
python notebooks/build.py 03 04      only these
python notebooks/build.py --check    execute in memory only, write nothing
python notebooks/build.py --text 04  no code cell has changed: write the new words, keep the outputs"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
SECONDS = 300  # a notebook is meant to take at most 90 on two cores; a busy machine may need longer


def sources(chosen=()):
    return [p for p in sorted(HERE.glob("[0-9][0-9]_*.py")) if not chosen or p.name[:2] in chosen]


def executed(source: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.source = cell.source.strip("\n")  # the two empty lines over a function belong to the .py
    os.environ["PYTHONWARNINGS"] = "ignore"  # of libraries, with the paths of this machine
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(HERE.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def reworded(source: Path) -> nbformat.NotebookNode:
    """The notebook with the words of its source; refused where a code cell is not the one that was run."""
    old, new = nbformat.read(source.with_suffix(".ipynb"), as_version=4), jupytext.read(source)
    ran = [cell for cell in old.cells if cell.cell_type == "code"]
    for number, cell in enumerate(new.cells):
        cell.source, cell.id, cell.metadata = cell.source.strip("\n"), f"cell-{number}", {}
        if cell.cell_type == "code":
            if not ran or cell.source != ran[0].source:
                sys.exit(
                    f"{source.name}: a code cell has changed, so it has to be executed: build.py {source.name[:2]}"
                )
            done = ran.pop(0)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    old.cells = new.cells
    return old


def smaller(png: str) -> str:
    """The same plot in 32 colours: a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(32)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main(arguments):
    chosen = [a for a in arguments if not a.startswith("--")]
    for source in sources(chosen):
        started = time.perf_counter()
        notebook = reworded(source) if "--text" in arguments else executed(source)
        if "--check" not in arguments:
            nbformat.write(notebook, source.with_suffix(".ipynb"))
        size = len(nbformat.writes(notebook)) / 1000
        print(f"{source.stem}: {time.perf_counter() - started:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
