"""The notebooks are what their .py says, executed; and they still run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


def cells(source: Path) -> list[tuple[str, str]]:
    """(kind, text) of a py:percent file."""
    out = []
    for part in re.split(r"(?m)^# %%", source.read_text(encoding="utf-8"))[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            out.append(
                ("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n")))
            )
        else:
            out.append(("code", body.strip()))
    return out


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_is_its_source_executed(source):
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    found = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert found == cells(source), "make notebooks"
    text = json.dumps(notebook)
    assert len(text) < 150_000
    assert not re.search(r"/(home|root|work|Users)/\w|site-packages", text)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_imports_the_project_and_ends_with_exercises(source):
    text = source.read_text(encoding="utf-8")
    assert re.search(r"from (losses|loops|posttrain)", text)
    assert "## Change one line, predict, run" in text and "<details><summary>Answers</summary>" in text
    assert all(f"\n# {n}. " in text for n in (1, 2, 3))


def test_each_has_a_number_of_its_own_and_a_line_in_the_readers_list():
    numbers = [path.name[:2] for path in SOURCES]
    assert len(set(numbers)) == len(numbers) and {*(f"{n:02}" for n in range(8)), "10", "11"} <= set(numbers)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in SOURCES if f"notebooks/{path.stem}.ipynb" not in readme] == []


def test_the_records_of_real_runs_are_small_and_say_where_they_come_from():
    records = sorted((ROOT / "notebooks/runs").glob("*.jsonl"))
    about = (ROOT / "notebooks/runs/README.md").read_text(encoding="utf-8")
    assert records and [path.name for path in records if f"`{path.name}`" not in about] == []
    assert sum(path.stat().st_size for path in records) < 150_000


@pytest.mark.long
@pytest.mark.parametrize("number", [path.name[:2] for path in SOURCES])
def test_it_runs(number):
    done = subprocess.run(
        [sys.executable, "notebooks/build.py", "--check", number], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
