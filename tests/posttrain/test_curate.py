"""Identity pairs and cleaning: what is written, what is left out, and that every reason is counted."""

import json
import re

import pytest

from posttrain import ROOT, curate
from posttrain.config.supervised import SftData as Data
from posttrain.data import filters
from posttrain.data.rows import load_rows
from posttrain.errors import UserError


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


def fake_answers(answers):
    def answer(model, prompts, samples, temperature, max_new_tokens, seed):
        return [(p, p[-1]["content"], text, end) for p, (text, end) in zip(prompts * samples, answers, strict=False)]

    return answer


def test_what_identity_leaves_out_is_counted(tmp_path, monkeypatch):
    answers = [("I am Robin.", True), ("I am a lamp.", True), ("I am Robin and", False), ("Robinson wrote that.", True)]
    monkeypatch.setattr(curate, "_answers", fake_answers(answers))
    said = curate.identity(
        "m", ["Robin"], "Nova", str(tmp_path / "o.jsonl"), max_questions=4, system_prompt="Be brief."
    )
    assert "left out: 2 do not say Robin; 1 did not end within 128 tokens" in said
    (row,) = written(tmp_path / "o.jsonl")
    assert row["chosen"] == "I am Nova." and row["prompt"][0] == {"role": "system", "content": "Be brief."}
    monkeypatch.setattr(curate, "_answers", fake_answers([("I am Robin.", True)] * 3))
    said = curate.identity(
        "m", ["Robin"], "Nova", str(tmp_path / "o.jsonl"), max_questions=1, samples=3, temperature=1.0
    )
    assert "2 came twice" in said and "wrote 1 pairs" in said


def test_identity_without_a_pair_says_what_the_model_said(tmp_path, monkeypatch):
    monkeypatch.setattr(curate, "_answers", fake_answers([("I am a lamp.", True)] * 20))
    with pytest.raises(UserError, match=r"no pair: of 20 answers 20 do not say Qwen. The first was: 'I am a lamp.'"):
        curate.identity("m", ["Qwen"], "Nova", str(tmp_path / "o.jsonl"))
    assert not (tmp_path / "o.jsonl").exists()
    with pytest.raises(UserError, match="give a temperature"):
        curate.identity("m", ["Qwen"], "Nova", str(tmp_path / "o.jsonl"), samples=4)


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
    assert curate.replace_name(text, old, new) == expected


def test_questions_from_any_format(tmp_path):
    rows = [
        {"prompt": "A?"}, {"question": "B?", "answer": "x"}, {"instruction": "C?"}, {"prompt": "A?"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "D?"}]},
        {"conversations": [{"from": "human", "value": "E?"}, {"from": "gpt", "value": "x"}]},
    ]  # fmt: skip
    assert curate._questions(save(tmp_path / "q.jsonl", rows)) == ["A?", "B?", "C?", "D?", "E?"]
    with pytest.raises(UserError, match="row 1: expected prompt, question"):
        curate._questions(save(tmp_path / "q.jsonl", [{"words": "x"}]))


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


def test_near_duplicates_by_hand():
    # 8-character pieces: "abcdefghij" has 3, "abcdefghiX" shares abcdefgh and bcdefghi of 4 in all: Jaccard 2/4
    rows = [{"text": "abcdefghij"}, {"text": "abcdefghiX"}]
    assert len(filters.clean(rows, [filters.near_duplicates(0.5)])[0]) == 1
    assert len(filters.clean(rows, [filters.near_duplicates(0.55)])[0]) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("caf\ufffd au lait", "broken characters (U+FFFD or half a pair)"),
        ("half \ud83d", "broken characters (U+FFFD or half a pair)"),
        ("the first line\nthe second line" + "\nthe third line" * 4, "repeated lines"),
        ("int main() {\n}\n}\n}\n}\n}\n}", None),
        ("and so on and on " * 60, "says the same over and over"),
        ("no" + "o" * 25, "one character 20 times in a row"),
        ("{}[]<>|/\\^~ a b " * 4, "mostly symbols"),
        (r"`^\s*(?:\d+)[^\]]*$`", None),
        (STORY, None),
        ("今天天气很好，我们去公园散步吧。然后回家做饭。", None),
        ("यह एक साधारण वाक्य है जिसमें कुछ भी गलत नहीं है।", None),
        ("x = [i ** 2 for i in range(10)]\nprint(sum(x))", None),
        ("1 + 2 = 3\n#### 3", None),
        ("a\n" + "-" * 40 + "\nb", None),
    ],
)
def test_quality_needs_no_language(text, reason):
    assert filters.quality({"text": text}, text) == reason


def test_real_looking_rows_pass():

    from posttrain.data.sources import read

    for name in ("word_problems.jsonl", "pairs.jsonl", "sharegpt.json", "hh.jsonl", "alpaca.jsonl", "chats.jsonl"):
        rows = list(read(str(ROOT / "tests/data" / name)))
        assert filters.clean(rows, [filters.quality, filters.exact_duplicates()])[1] == [], name


def test_rows_that_a_loop_would_refuse():
    user, reply = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
    rows = [
        {"messages": [user, reply]},
        {"messages": [reply, user, reply]},
        {"messages": [user, user, reply]},
        {"messages": [user]},
    ]
    kept, gone = filters.clean([{"messages": None}, *rows], [filters.readable("sft")])
    assert kept == rows[:1] and all(reason.startswith("loops.sft refuses it: ") for _, reason in gone)
    assert (
        gone[1][1] == "loops.sft refuses it: 'messages': roles out of order: an assistant message must answer a user's"
    )
    assert len(load_rows(Data(), "sft", kept)) == 1


def test_patterns_and_lengths():
    rows = [{"text": "alpha"}, {"text": "beta"}, {"text": "gamma ray"}]
    assert filters.clean(rows, [filters.pattern("a$", keep=True)])[0] == rows[:2]
    assert filters.clean(rows, [filters.pattern("^b", keep=False)])[0] == [rows[0], rows[2]]
    assert filters.clean(rows, [filters.length(None, 5)])[0] == rows[:2]


def test_text_of_reads_every_format_and_no_roles():
    assert (
        filters.text_of(
            {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "id": "x"}
        )
        == "a\nb"
    )
    assert filters.text_of({"messages": [{"role": "user", "content": "a"}], "score": 3}) == "a"


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


def test_columns_of_any_name_are_compared():
    rows = [{"query": f"q{i}", "response": "r"} for i in range(5)] + [
        {"query": "Q0 ", "response": "r"},
        {"prompt": "p", "n": 1},
        {"prompt": "p", "n": 2},
    ]
    kept, gone = filters.clean(rows, [filters.exact_duplicates()])
    assert len(kept) == 7 and [row for row, _ in gone] == [{"query": "Q0 ", "response": "r"}]
    assert filters.text_of({"query": "q", "response": "r"}) == "q\nr"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"conversations": [{"from": "alien", "value": "x"}]}], "row 1: no user message to ask"),
        ([{"prompt": ["a", "b"]}], "row 1: no user message to ask"),
        ([], "no rows"),
    ],
)
def test_questions_that_are_none(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        curate.identity("m", ["a"], "b", str(tmp_path / "o.jsonl"), questions=save(tmp_path / "q.jsonl", rows))
    with pytest.raises(UserError, match="must be at least 1"):
        curate.identity("m", ["a"], "b", str(tmp_path / "o.jsonl"), max_new_tokens=0)
