"""The embedded names: a command each, a fingerprint of all that goes into it, and one build that many may ask for."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.tiny import data, names

ALL = [(name, "train") for name in names.MODELS] + [
    (name, split) for name in names.SAMPLED for split in ("train", "test")
]


@pytest.mark.parametrize(
    ("name", "loop"), [("tiny-base", "pretrain"), ("tiny-sft", "sft"), ("tiny-dpo", "dpo"), ("tiny-grpo", "grpo")]
)
def test_a_models_command_is_its_loop_on_its_config(name, loop):
    assert names.command(name) == ["-m", f"loops.{loop}", "--config", f"configs/{loop}_tiny.yaml"]
    assert (ROOT / names.command(name)[-1]).is_file()


def test_a_sampled_sets_command():
    wanted = "-m posttrain.curate best-of-k --model tiny-sft --prompts tiny-math --split {} --max-prompts {} --score answer --k 4 --max-new-tokens 28 --write {}"
    asked = [names.command("tiny-preference"), names.command("tiny-outcome", "test")]
    options = [dict(zip(words[3::2], words[4::2], strict=True)) for words in asked]
    expected = [wanted.format("train", 1000, "pairs"), wanted.format("test", 300, "labels")]
    assert options == [dict(zip(w[3::2], w[4::2], strict=True)) for w in (line.split() for line in expected)]
    assert all(words[:3] == ["-m", "posttrain.curate", "best-of-k"] for words in asked)


def test_fingerprints_differ_and_stay():
    found = {key: names.fingerprint(*key) for key in ALL}
    assert len(set(found.values())) == len(ALL) == 8 and all(len(value) == 12 for value in found.values())
    assert found == {key: names.fingerprint(*key) for key in ALL}


def changed(monkeypatch, what):
    """Which fingerprints move when this changes."""
    before = {key: names.fingerprint(*key) for key in ALL}
    with monkeypatch.context() as patch:
        what(patch)
        return {name for (name, split), value in before.items() if names.fingerprint(name, split) != value}


def test_everything_that_goes_into_one_moves_it_and_all_above_it(monkeypatch):
    rows, sampled = data.rows, {"tiny-preference", "tiny-outcome"}

    def other(name):
        return lambda patch: patch.setattr(
            data, "rows", lambda n, s="train", **k: ["x"] if n == name else rows(n, s, **k)
        )

    assert changed(monkeypatch, lambda p: p.setattr(names.tokenizer, "VOCABULARY", 7)) == {*names.MODELS, *sampled}
    assert changed(monkeypatch, lambda p: p.setattr(names.tokenizer, "CHATML", "x")) == {*names.MODELS, *sampled}
    assert changed(monkeypatch, other("tiny-sft")) == {*names.MODELS, *sampled}
    assert changed(monkeypatch, lambda p: p.setattr(data, "documents", lambda rng: iter(["x"]))) == {
        *names.MODELS,
        *sampled,
    }
    assert changed(monkeypatch, other("tiny-identity")) == {"tiny-dpo", "tiny-grpo"}
    assert changed(monkeypatch, other("tiny-math")) == {*sampled, "tiny-grpo"}
    assert changed(monkeypatch, lambda p: p.setattr(names, "PROBLEMS", {"train": 9, "test": 300})) == sampled


def test_a_config_that_changes_moves_its_model(monkeypatch):
    real = Path.read_text

    def edited(path, *a, **k):
        return real(path, *a, **k) + "# edited" * (path.name == "sft_tiny.yaml")

    assert changed(monkeypatch, lambda p: p.setattr(Path, "read_text", edited)) == {
        "tiny-sft",
        "tiny-dpo",
        "tiny-grpo",
        *names.SAMPLED,
    }


def test_where_they_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    assert names.cache_folder() == tmp_path
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert names.cache_folder() == tmp_path / "xdg/posttrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.cache_folder() == tmp_path / ".cache/posttrain"


def test_it_is_built_once_though_several_ask(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    built, begun = [], threading.Event()

    def build(command, target):
        built.append((command, target.name))
        begun.wait(0.2)  # the others come while this one is at it
        target.mkdir()

    monkeypatch.setattr(names, "build", build)
    asking = [threading.Thread(target=names.path_of, args=("tiny-base",)) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert built == [(names.command("tiny-base"), f"tiny-base-{names.fingerprint('tiny-base')}")]
    assert names.path_of("tiny-base") == tmp_path / "cache" / built[0][1]
    assert capsys.readouterr().err.count("building tiny-base once, into ") == 1


def test_a_sampled_sets_file(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(names, "build", lambda command, target: target.write_text(json.dumps(command)))
    path = names.path_of("tiny-outcome", "test")
    assert path.name == f"tiny-outcome-test-{names.fingerprint('tiny-outcome', 'test')}.jsonl"
    assert json.loads(path.read_text()) == names.command("tiny-outcome", "test")


# ---------------------------------------------------------------- the build itself: a process that stands for the loop

LOOP = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[2])
(out / "model").mkdir(parents=True)
(out / "model" / "said.txt").write_text(" ".join([sys.argv[1], *sys.argv[3:], os.getcwd(), os.environ.get("RANK", "alone")]))
print("noise")
"""
FILE = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(sys.argv[1])"


def test_a_models_build_leaves_the_model_alone(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("RANK", "1")  # asked for by one of several processes: the build is no part of their group
    names.build(["-c", LOOP], tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it/said.txt").read_text() == f"--output.dir --output.overwrite {ROOT} alone"
    assert capfd.readouterr().out == ""


def test_a_files_build(tmp_path):
    names.build(["-c", FILE], tmp_path / "it.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["it.jsonl"]
    assert (tmp_path / "it.jsonl").read_text() == "--out"


def test_a_build_that_fails_leaves_no_model(tmp_path):
    with pytest.raises(UserError, match=r"(?s)building it failed: python -c .* ended with 3; why stands above"):
        names.build(["-c", f"{LOOP}\nsys.exit(3)"], tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_the_module_is_light():
    code = "import sys; sys.modules['torch'] = None; from posttrain.tiny import names; print(names.fingerprint('tiny-dpo'))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == names.fingerprint("tiny-dpo"), out.stderr  # the same in another process
