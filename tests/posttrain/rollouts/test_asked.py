"""The file of what was asked: it goes on, and never with other settings."""

import json

import pytest

from posttrain.errors import UserError
from posttrain.rollouts.asked import Asked
from posttrain.rollouts.speaking import Said


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_goes_on_behind_half_a_line(tmp_path):
    out, path = str(tmp_path / "sub/o.jsonl"), tmp_path / "sub/o.asked.jsonl"
    asked = Asked(out, {"seed": 0})
    asked.add("a", Said("ä", None))
    asked.add("b", Said("", "are empty"))
    asked.close()
    with open(path, "ab") as file:
        file.write(b'{"key": "c", "te')  # killed
    again = Asked(out, {"seed": 0})
    assert again.said == {"a": Said("ä", None), "b": Said("", "are empty")}
    again.add("c", Said("C", None))
    again.close()
    assert lines(path) == [
        {"settings": {"seed": 0}}, {"key": "a", "text": "ä", "problem": None}, {"key": "b", "text": "", "problem": "are empty"},
        {"key": "c", "text": "C", "problem": None},
    ]  # fmt: skip


def test_other_settings_are_refused_once_something_was_heard(tmp_path):
    out, path = str(tmp_path / "o.jsonl"), tmp_path / "o.asked.jsonl"
    Asked(out, {"seed": 0}).close()
    asked = Asked(out, {"seed": 1})  # nothing was asked under the old ones
    asked.add("a", Said("A", None))
    asked.close()
    assert lines(path)[0] == {"settings": {"seed": 1}} and len(lines(path)) == 2
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"o.asked.jsonl was made with seed = 1, not 2: give the same as before"):
        Asked(out, {"seed": 2})
    with pytest.raises(UserError, match=r"was made with top_p = null, not 0\.9"):
        Asked(out, {"seed": 1, "top_p": 0.9})
    assert path.read_bytes() == before
    path.write_text('{"prompt": "mine"}\n')
    with pytest.raises(UserError, match="not written by this command"):
        Asked(out, {"seed": 1})
    assert path.read_text() == '{"prompt": "mine"}\n'
