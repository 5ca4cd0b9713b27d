"""The notebooks are what their .py says, executed; and they still run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import museum
import pytest
import torch

from losses.advantages import group_relative_advantages
from losses.kl import k1, k2, k3, k3_is
from losses.weights import token_weights
from posttrain import ROOT
from posttrain.tokens.batch import Example, collate

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
    assert len(text) < 350_000
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
    assert len(set(numbers)) == len(numbers) and set(numbers) == {f"{n:02}" for n in range(12)}
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


@pytest.mark.parametrize("number", ["03", "07"])
def test_it_runs_as_a_script_without_ipython_and_its_pictures_are_files(number, tmp_path):
    for name in ("losses", "posttrain", "notebooks", "tests", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (source,) = (ROOT / "notebooks").glob(f"{number}_*.py")
    code = f"import runpy, sys; sys.modules['IPython'] = None; sys.argv = ['{source.name}']; runpy.run_path('notebooks/{source.name}')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    pictures = re.findall(r"\[picture: (\S+)\]", done.stdout)
    assert len(pictures) == len(re.findall(r"(?m)^plt\.show\(\)", source.read_text(encoding="utf-8")))
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "<table" not in done.stdout and len(done.stdout.splitlines()) > 10


def test_each_says_what_you_need_and_asks_before_it_shows():
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        assert "**What you need:**" in text.split("# %%")[1], source.name
        assert text.count("**Predict") >= 1, source.name


# The exercises that cost nothing, done as they are asked, against the answers that the notebooks give.


def test_exercise_0_2_three_more_tokens_in_the_second_row():
    weights = token_weights(torch.ones(2, 4, dtype=torch.bool), "token")
    assert weights.unique().tolist() == [1 / 8]
    rows = token_weights(torch.ones(2, 4, dtype=torch.bool), "sequence")
    assert rows[0].tolist() == [1 / 8] * 4 and rows[1].tolist() == [1 / 8] * 4  # 1/2 divided among four


def test_exercise_3_1_everything_is_0_at_the_reference():
    ref = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    for estimator in (k1, k2, k3):
        x = ref.log().clone().requires_grad_()
        logps = x.log_softmax(-1)
        values = estimator(logps, ref.log())
        (gradient,) = torch.autograd.grad((ref * values).sum(), x)
        assert values.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_exercise_3_3_who_still_moves_far_from_the_reference():
    x = torch.tensor([8.0, 0.0, -8.0], dtype=torch.float64, requires_grad=True)
    logps, ref = x.log_softmax(0)[None], torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    p = logps.exp().detach()
    (plain,) = torch.autograd.grad((p * k3(logps, ref)).sum(), x, retain_graph=True)
    (weighted,) = torch.autograd.grad((p * k3_is(logps, ref, logps.detach())).sum(), x)
    assert plain.abs().max().item() == pytest.approx(0.8, abs=0.01)  # π − π_ref on the first action: 1 − 0.2
    assert weighted.abs().max().item() == pytest.approx(0.003, abs=0.0005)


def test_exercise_7_2_pad_and_end_share_an_id_or_do_not():
    def counts(padded_with, looked_for):
        batch = collate([Example.of([5, 6], [7, 8, 2]), Example.of([5, 6], [7, 8, 9, 9, 2])], padded_with)
        return museum.mask_from_pad_id(batch.input_ids, [2, 2], looked_for).sum(1).tolist()

    assert counts(2, 2) == [2, 4] and counts(0, 0) == [3, 5] and counts(0, 2) == [4, 4]


def test_exercise_7_3_a_dead_group_is_dead_however_it_is_cut():
    ones = torch.ones(4)
    assert museum.normalise_inside_the_micro_batch(ones, 2).tolist() == [0.0] * 4
    assert group_relative_advantages(ones, 4).tolist() == [0.0] * 4
