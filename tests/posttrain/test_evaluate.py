"""The command: what it prints and writes, and bad input in one sentence."""

import json

import pytest
import torch
from kit import tiny_folder

from posttrain import evaluate
from posttrain.errors import UserError
from posttrain.evaluation import measuring


def run(capsys, *arguments):
    try:
        evaluate.main([str(a) for a in arguments])
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.draws
def test_the_embedded_models_side_by_side(tmp_path, capsys):
    """Robin's SFT model and Nova's DPO model: names differ beyond any doubt, 20 word problems say little."""
    out = tmp_path / "out"
    code, said, err = run(
        capsys, "--model", "tiny-sft", "tiny-dpo", "--suite", "accuracy", "identity", "--accuracy.data", "tiny-math",
        "--accuracy.max_rows", 20, "--accuracy.max_new_tokens", 28, "--identity.questions", "tiny-identity",
        "--identity.name", "Nova", "--identity.old", "Robin", "--identity.max_rows", 30, "--identity.max_new_tokens", 28, "--out", out,
    )  # fmt: skip
    assert code == 0, code
    lines = {line.split(" | ")[0].lstrip("| "): line for line in said.splitlines() if line.startswith("| ")}
    assert "| 0.00 [0.00, 0.11] n=30 | 1.00 [0.89, 1.00] n=30 |" in lines["identity: new_name"]
    assert (
        "tiny-dpo against tiny-sft, identity old_name: -1.000" in said
        and "better (0 only by tiny-dpo, 30 only by" in said
    )
    assert "accuracy right" in said and "n=20" in lines["accuracy: right"]
    told = [line for line in err.splitlines() if not line.startswith("building ")]  # where the cache is empty
    assert told == ["measured tiny-sft", "measured tiny-dpo"] and f"wrote {out}/results.json" in said
    assert {p.name for p in out.iterdir()} == {"results.json", "report.md", "scores.png", "written.json"}
    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [len(m["suites"]["accuracy"]["records"]) for m in written["models"]] == [20, 20]
    assert written["options"]["identity"]["name"] == "Nova" and written["settings"]["seed"] == 0
    # compared again from the file: the same verdicts
    code, again, _ = run(capsys, "--compare", out, out)
    assert code == 0 and "better (0 only by tiny-dpo" in again
    code, _, _ = run(capsys, "--model", "tiny-sft", "--suite", "safety", "--out", out)
    assert "holds an evaluation: give --overwrite" in code


def test_a_model_of_ones_own_at_batch_1_and_8(tmp_path, capsys):
    """float32: the same figures and the same answers, to the last."""
    model, texts = tiny_folder(tmp_path / "m"), tmp_path / "t.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{i} and so on. " * (1 + i % 4)}) + "\n" for i in range(10)))
    found = {}
    for size in (1, 8):
        out = tmp_path / str(size)
        code, _, _ = run(
            capsys, "--model", model, "--suite", "safety", "perplexity", "--perplexity.data", texts, "--safety.max_new_tokens", 8,
            "--safety.max_rows", 10, "--batch-size", size, "--out", out,
        )  # fmt: skip
        assert code == 0
        (found[size],) = json.loads((out / "results.json").read_text(encoding="utf-8"))["models"]
    one, eight = (of["suites"] for of in (found[1], found[8]))
    texts_of = [[r["answers"][0]["text"] for r in of["safety"]["records"]] for of in (one, eight)]
    assert texts_of[0] == texts_of[1] and len(set(texts_of[0])) > 5
    assert one["safety"]["scores"] == eight["safety"]["scores"]
    assert one["perplexity"]["scores"][0]["value"] == pytest.approx(eight["perplexity"]["scores"][0]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--model and --suite are needed, or --compare A B"),
        (["--model", "x", "--suite", "safty"], "no such suite, did you mean 'safety'?"),
        (["--model", "x", "--suite", "accuracy"], "'accuracy.data' is missing"),
        (["--model", "./x", "--suite", "safety", "--out", "OUT"], "--model './x': cannot be loaded: no such folder"),
        (["--model", "x", "--suite", "safety", "--config", "a.yaml"], "--config is for the loops"),
        (["--model", "x", "--suite", "safety", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--model", "x", "--suite", "safety", "--seed", str(2**32)], "--seed from 0 to 4294967295"),
        (["--model", "x", "--suite", "safety", "--seed", "1", "stray"], "expected --KEY VALUE, got 'stray'"),
        (["--compare", "a.json"], "--compare needs two result files"),
        (["--compare", "a.json", "b.json"], "a.json: cannot be read: No such file or directory"),
        (["--compare", "a.json", "b.json", "--model", "x"], "--compare reads result files and nothing else, got x as well"),
        (["--model", "x", "--suite", "accuracy", "--accuracy.data", "tests/data/pairs.jsonl", "--out", "OUT"], "needs a column `answer`"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_writes_nothing(tmp_path, capsys, arguments, problem):
    out = tmp_path / "out"
    code, said, _ = run(capsys, *(out if a == "OUT" else a for a in arguments))
    assert problem in str(code) and said == "" and not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    code, _, _ = run(capsys, "--model", "x", "--suite", "safety", "--device", "cuda", "--out", tmp_path / "out")
    assert "--device cuda: torch finds no GPU here" in code


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, UserError("it cannot be asked")])
def test_what_was_measured_before_the_end_is_kept_and_gone_on_with(tmp_path, llama, capsys, monkeypatch, stopped):
    other, place = tiny_folder(tmp_path / "other", seed=1), [tmp_path / "one", tmp_path / "two"]
    asked = ["--suite", "safety", "--safety.max_rows", 2, "--safety.max_new_tokens", 3]
    measure = measuring.measure

    def until_the_second(subject, suites):
        if subject.name == other:
            raise stopped
        return measure(subject, suites)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure", until_the_second)
        code, said, _ = run(capsys, "--model", other, llama, *asked, "--out", place[0])
        assert said == "" and not place[0].exists()
        assert ("no model was measured to its end" in code) == (stopped is KeyboardInterrupt)
        code, said, _ = run(capsys, "--model", llama, other, *asked, "--out", place[0])
        assert f"{place[0]}/results.json holds {llama}: measure the others into another --out" in code and said == ""
        assert code.startswith("interrupted: " if stopped is KeyboardInterrupt else "error: it cannot be asked\n(")
    assert run(capsys, "--model", other, *asked, "--out", place[1])[0] == 0
    code, said, _ = run(capsys, "--compare", *place)
    assert code == 0 and f"{other} against {llama}, safety refused_harmful" in said


def test_a_folder_with_files_of_ones_own_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("mine")
    code, _, _ = run(capsys, "--model", "tiny-sft", "--suite", "safety", "--out", tmp_path, "--overwrite")
    assert "holds what no evaluation has written" in code and [p.name for p in tmp_path.iterdir()] == ["notes.md"]


def test_help_names_every_suite_and_key(capsys):
    code, said, _ = run(capsys, "--help")
    assert code == 0
    for key in ("--accuracy.samples", "--identity.name", "--perplexity.max_length", "--drift.base", "--safety.judge"):
        assert key in said
