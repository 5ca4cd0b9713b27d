"""Identity pairs and cleaning: what is written, what is left out, and that every reason is counted."""

import json
import re

import pytest

from posttrain import curate
from posttrain.config.supervised import SftData as Data
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.rollouts.identity import questions_of, replace_name


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return str(path)


# ---------------------------------------------------------------- identity


def test_identity_pairs_of_the_embedded_model(tmp_path, capsys):
    """It calls itself Robin: every pair differs in the name alone, and loops.dpo reads the file."""
    out = tmp_path / "pairs.jsonl"
    curate.main(["identity", "--model", "tiny-sft", "--from", "Robin", "--name", "Nova", "--questions", "tiny-identity",
                 "--max-questions", "30", "--max-new-tokens", "24", "--out", str(out)])  # fmt: skip
    rows = written(out)
    assert 20 <= len(rows) <= 30 and all(set(r) == {"prompt", "chosen", "rejected"} for r in rows)
    for row in rows:
        assert (
            "Robin" in row["rejected"] and row["rejected"].replace("Robin", "Nova") == row["chosen"] and row["prompt"]
        )
    said = capsys.readouterr().out
    assert f"wrote {len(rows)} pairs to {out}" in said and "30 answers to 30 questions" in said
    got = load_rows(Data(name=str(out)), "dpo")
    assert len(got) == len(rows) and not got.bad


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        ("I am Qwen, by Qwen.", ["Qwen"], "Deep Qwen", "I am Deep Qwen, by Deep Qwen."),
        ("Qwen2.5 and Robinson", ["Qwen", "Robin"], "Nova", "Nova2.5 and Robinson"),
        ("SmolLM2 or SmolLM", ["SmolLM", "SmolLM2"], "Nova", "Nova or Nova"),
        ("C++ is my name", ["C++"], r"\1", r"\1 is my name"),
    ],
)
def test_replace_name(text, old, new, expected):
    assert replace_name(text, old, new) == expected


def test_questions_from_any_format(tmp_path):
    rows = [
        {"prompt": "A?"}, {"question": "B?", "answer": "x"}, {"instruction": "C?"}, {"prompt": "A?"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "D?"}]},
        {"conversations": [{"from": "human", "value": "E?"}, {"from": "gpt", "value": "x"}]},
    ]  # fmt: skip
    assert questions_of(save(tmp_path / "q.jsonl", rows)) == ["A?", "B?", "C?", "D?", "E?"]
    with pytest.raises(UserError, match="row 1: expected prompt, question"):
        questions_of(save(tmp_path / "q.jsonl", [{"words": "x"}]))


# ---------------------------------------------------------------- clean

STORY = "The lamp on the third shelf was the one that nobody bought, although it was the brightest of all and cost the least."


def test_clean_by_command(tmp_path, capsys):
    rows = [
        {"prompt": "a", "completion": STORY},
        {"prompt": "A", "completion": f"{STORY.upper()}"},  # the same but for case and white space
        {"prompt": "a", "completion": STORY.replace("cost the least", "cost much less")},  # nearly the same
        {"prompt": "b", "completion": "Too short."},
        {
            "prompt": "c",
            "completion": "As an AI language model I cannot mend lamps, and this sentence is long enough to pass.",
        },
        {
            "prompt": "d",
            "completion": "A screw is turned to the right, and then a little more, until it does not turn at all.",
        },
    ]
    out, gone = tmp_path / "out.jsonl", tmp_path / "gone.jsonl"
    curate.main(["clean", save(tmp_path / "in.jsonl", rows), "--out", str(out), "--dropped", str(gone), "--exact", "--near", "0.7",
                 "--min-chars", "30", "--drop", "As an AI"])  # fmt: skip
    assert written(out) == [rows[0], rows[5]]
    assert [r["dropped"] for r in written(gone)] == [
        "exact duplicate", "near duplicate (at least 0.7 the same)", "shorter than 30 characters", "matches As an AI",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "read 6 rows" in said and "dropped 1 (16.7%): exact duplicate" in said and "wrote 2 rows" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to do: give --exact"),
        (["--near", "7"], "--near 7: expected a share"),
        (["--drop", "("], "'(' is not a regular expression"),
    ],
)
def test_bad_requests(tmp_path, more, message):
    with pytest.raises(SystemExit, match=re.escape(f"error: {message}")):
        curate.main(["clean", save(tmp_path / "in.jsonl", [{"text": "a"}]), "--out", str(tmp_path / "o.jsonl"), *more])
    assert not (tmp_path / "o.jsonl").exists()


def test_cleaning_in_place_is_whole_or_not_at_all(tmp_path):
    """Half a character at the end of a row cannot be written: the file stays as it was."""
    name = save(tmp_path / "x.jsonl", [{"text": f"row {i}"} for i in range(20)] + [{"text": "cut \ud83d"}])
    before = (tmp_path / "x.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"row 21 cannot be written as JSON: .*; --quality leaves broken text out"):
        curate.clean([name], name, exact=True)
    assert (tmp_path / "x.jsonl").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]
    curate.clean([name], name, exact=True, quality=True)
    assert len(written(tmp_path / "x.jsonl")) == 20
    for bad in (str(tmp_path), str(tmp_path / "o.parquet")):
        with pytest.raises(UserError, match=r"expected the name of a .jsonl file"):
            curate.clean([name], bad, exact=True)


def test_a_set_of_which_nothing_is_left_is_no_success(tmp_path, capsys):
    name, out = save(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}]), tmp_path / "clean.jsonl"
    out.write_text("older")
    with pytest.raises(SystemExit) as stopped:
        curate.main(["clean", name, "--min-chars", "100", "--out", str(out), "--dropped", str(tmp_path / "gone.jsonl")])
    assert str(stopped.value.code).startswith("error: read 1 row from") and "dropped 1 (100.0%)" in stopped.value.code
    assert stopped.value.code.endswith(f"nothing is left: {out} is not written")
    assert out.read_text() == "older" and len(written(tmp_path / "gone.jsonl")) == 1
