"""results.json there and back, files compared later, and a folder that is somebody else's."""

import json
import subprocess
import sys

import pytest
from told import ABOUT, results

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.evaluation.results import Measured, Results, read, refuse_folder, side_by_side, write


def test_there_and_back(tmp_path):
    made = results([1, 0, 1])
    write(tmp_path / "out", made)
    assert repr(read(str(tmp_path / "out"))) == repr(made) == repr(read(str(tmp_path / "out/results.json")))
    text = (tmp_path / "out/results.json").read_text()
    assert "NaN" not in text and json.loads(text)["models"][0]["suites"]["accuracy"]["scores"][0]["n"] == 3
    assert not (tmp_path / "out/results.json.part").exists()


def test_two_files_are_compared_prompt_by_prompt(tmp_path):
    write(tmp_path / "a", results([0] * 10 + [1] * 10))
    write(tmp_path / "b", results([1] * 20))
    together = side_by_side([str(tmp_path / name) for name in "ab"])
    right, _ = together.differences()
    # both called m: told apart by their files. 10 to none: p = 2 / 2^10
    assert (
        right.verdict == "better" and right.value == 0.5 and right.b == f"m ({tmp_path}/b)" and "p = 0.002" in right.why
    )
    back = side_by_side([str(tmp_path / name) for name in "ba"]).differences()[0]
    assert back.verdict == "worse" and back.value == -0.5


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (results([1, 1], prompts=["q0", "other"]), r"accuracy: .*/a\) and .*/b\) were not asked the same: .*q1.* only of m \(.*/a\)"),
        (results([1], prompts=["q0"]), r"were not asked the same: .*q1"),
        (results([1, 1, 1]), r"were not asked the same: .*q2.* only of m \(.*/b\)"),
        (results([1, 1], prompts=["q1", "q0"]), "the same prompts in another order"),
        (results([1, 1], options={"data": "e"}), r"/a was made with data = 'd', .*/b with 'e'"),
        (Results(ABOUT, {}, [Measured("m", {}, {})]), "have no suite in common"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_what_differs(tmp_path, other, problem):
    write(tmp_path / "a", results([1, 0]))
    write(tmp_path / "b", other)
    with pytest.raises(UserError, match=problem):
        side_by_side([str(tmp_path / name) for name in "ab"]).differences()


def test_comparing_needs_no_torch(tmp_path):
    for name in "ab":
        write(tmp_path / name, results([1, 0]))
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\nfrom posttrain.evaluate import main\nmain(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "--compare", tmp_path / "a", tmp_path / "b"], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "inconclusive" in done.stdout, done.stderr


def test_what_else_may_have_moved_a_figure_is_said(tmp_path):
    a, b = results([1, 0]), results([1, 1])
    b.about = ABOUT | {"settings": {"seed": 5, "batch_size": 8}, "torch": "9"}  # (the size of a batch moves nothing)
    write(tmp_path / "a", a), write(tmp_path / "b", b)
    (line,) = side_by_side([str(tmp_path / name) for name in "aab"]).unlike
    assert line == f"{tmp_path}/b was not made as {tmp_path}/a was: seed 5, not 0; torch 9, not 0"


@pytest.mark.parametrize(
    "changes",
    [{"kind": "median"}, {"items": "101"}, {"items": None}, {"items": [[1.0]] * 3}, {"value": "x"}, {"new": 1},
     {"kind": "corpus", "items": [[1.0]] * 3, "formula": "unknown"}],
)  # fmt: skip
def test_a_file_of_another_version_is_named_as_such(tmp_path, changes):
    write(tmp_path, results([1, 0, 1]))
    file = tmp_path / "results.json"
    values = json.loads(file.read_text())
    values["models"][0]["suites"]["accuracy"]["scores"][0] |= changes
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"not a results.json .* of another version \(posttrain 0\)"):
        read(str(file))


def test_a_record_says_what_it_is_of(tmp_path):
    made = results([1, 0])
    made.models[0].outcomes["accuracy"].records[1].pop("part")
    write(tmp_path, made)
    with pytest.raises(UserError, match=r"not a results.json"):
        read(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"models": 3}', '{"models": [{"name": "x"}]}'])
def test_what_is_no_results_file(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=r"r.json: not a results.json"):
        read(str(tmp_path / "r.json"))


def test_a_folder_that_is_somebody_elses_is_refused(tmp_path):
    out = tmp_path / "out"
    refuse_folder(out, False)  # new
    out.mkdir()
    refuse_folder(out, False)  # empty
    (out / "report.md").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds what no evaluation has written"):
            refuse_folder(out, overwrite)
    with pytest.raises(UserError, match=r"report.md is a file"):
        refuse_folder(out / "report.md", True)
    assert (out / "report.md").read_text() == "mine"


def test_an_older_evaluation_is_replaced_when_asked_and_a_strangers_file_in_it_stays(tmp_path):
    out = tmp_path / "out"
    write(out, results([1, 0]))
    with pytest.raises(UserError, match="holds an evaluation: give --overwrite"):
        refuse_folder(out, False)
    refuse_folder(out, True)
    (out / "report.md").write_text("of the older results")
    (out / "notes.txt").write_text("mine")
    write(out, results([1, 1]))
    assert not (out / "report.md").exists() and (out / "notes.txt").read_text() == "mine"
    assert read(str(out)).models[0].outcomes["accuracy"].scores[0].value == 1.0
    (out / "scores.png").symlink_to(out / "notes.txt")
    with pytest.raises(UserError, match=r"scores.png is not of an evaluation"):
        refuse_folder(out, True)
