"""The command: its options, its report, and that a person stays the same person under one salt."""

import json
import re

import pytest

from posttrain import deidentify
from posttrain.errors import UserError


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.delenv("POSTTRAIN_SALT", raising=False)
    path = tmp_path / "rows.jsonl"
    found = [
        {"prompt": "jo@x.org, 10.0.0.19", "completion": "Jo@X.org", "id": 4111111111111111},
        {"prompt": "Hi", "completion": "b"},
    ]
    path.write_text("\n".join(map(json.dumps, found)))
    return path


def run(capsys, rows, *more):
    out = rows.with_name("clean.jsonl")
    deidentify.main(["--in", str(rows), "--out", str(out), *more])
    return [json.loads(line) for line in out.read_text().splitlines()], capsys.readouterr().out


def test_by_command(rows, tmp_path, capsys):
    clean, said = run(capsys, rows, "--report", str(tmp_path / "found.json"))
    assert clean[0] == {"prompt": "[EMAIL], [IPV4]", "completion": "[EMAIL]", "id": 4111111111111111}
    assert clean[1] == {"prompt": "Hi", "completion": "b"}
    assert "read 2 rows from" in said and "something was found in 1\n" in said
    assert re.search(r"  prompt +email 1, ipv4 1\n  completion +email 1\n", said)
    assert "left as it is, a number of 'id': credit_card 1" in said
    assert "NOT for names, postal addresses, dates of birth" in said and "salt" not in said
    report = json.loads((tmp_path / "found.json").read_text())
    assert report["found"] == {"prompt": {"email": 1, "ipv4": 1}, "completion": {"email": 1}}
    assert (report["rows"], report["rows_changed"], report["action"]) == (2, 1, "replace")
    assert report["left_as_it_is"] == {"a number of 'id'": {"credit_card": 1}} and "NOT" in report["limits"]


def test_kinds_and_mask(rows, capsys):
    clean, _ = run(capsys, rows, "--kinds", "ipv4", "--action", "mask")
    assert clean[0]["prompt"] == "jo@x.org, **.*.*.**" and clean[0]["completion"] == "Jo@X.org"


def test_one_person_is_one_token_under_one_salt(rows, capsys, monkeypatch, tmp_path):
    clean, said = run(capsys, rows, "--action", "hash", "--report", str(tmp_path / "r.json"))
    token = clean[0]["completion"]
    assert re.fullmatch(r"\[EMAIL_[0-9a-f]{16}\]", token) and clean[0]["prompt"].startswith(token)
    salt = re.search(r"POSTTRAIN_SALT=([0-9a-f]{32}) gives the same tokens again", said)[1]
    assert salt not in (tmp_path / "r.json").read_text()
    again, said = run(capsys, rows, "--action", "hash", "--salt", salt)
    assert again == clean and salt not in said
    other, _ = run(capsys, rows, "--action", "hash")  # a new salt
    assert other != clean
    monkeypatch.setenv("POSTTRAIN_SALT", salt)
    assert run(capsys, rows, "--action", "hash")[0] == clean


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kinds": ["mail"]}, "--kinds mail: expected some of email, url"),
        ({"kinds": ["person"], "backend": "presidio"}, "--kinds person: expected some of"),  # only with a model
        ({"ner_model": "x"}, "--ner-model belongs to --backend presidio"),
        ({"salt": "x"}, "--salt belongs to --action hash"),
    ],
)
def test_bad_requests(rows, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        deidentify.deidentify(str(rows), str(tmp_path / "o.jsonl"), **keys)
    assert not (tmp_path / "o.jsonl").exists()
