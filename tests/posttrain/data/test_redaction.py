"""Only what was found is another: byte for byte in every kind of file, in every format, however deep."""

import json
import re

import pytest

from posttrain.data.files import read_file
from posttrain.data.privacy import patterns
from posttrain.data.redaction import Redactor, redact_file
from posttrain.errors import UserError


def redact(path, out=None, **keys):
    redactor = Redactor(patterns(), **keys)
    out = out or path.with_name(f"out{path.suffix}")
    redact_file(str(path), str(out), redactor)
    return out.read_bytes(), redactor


ROWS = [  # each format of formats.py: (row, what stands where)
    ({"prompt": "I am jo@x.org", "completion": "Hello jo@x.org"}, {("prompt", "email"): 1, ("completion", "email"): 1}),
    ({"messages": [{"role": "user", "content": "call +49 170 1234567"}]}, {("messages[].content", "phone"): 1}),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "jo@x.org"}]}]}, {("messages[].content[].text", "email"): 1}),
    ({"prompt": "?", "chosen": "jo@x.org", "rejected": "www.x.org"}, {("chosen", "email"): 1, ("rejected", "url"): 1}),
    ({"question": "10.0.0.19?", "answer": "#### 72"}, {("question", "ipv4"): 1}),
    ({"text": "123-45-6789"}, {("text", "ssn"): 1}),
    ({"conversations": [{"from": "human", "value": "fe80::1"}]}, {("conversations[].value", "ipv6"): 1}),
    ({"history": [["a", "jo@x.org"]], "instruction": "b", "output": "c"}, {("history[][]", "email"): 1}),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "mail", "arguments": {"to": ["jo@x.org"], "n": 2}}}]}]},
        {("messages[].tool_calls[].function.arguments.to[]", "email"): 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "found"), ROWS)
def test_every_format(tmp_path, row, found):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    after, redactor = redact(path)
    assert redactor.found == found and (redactor.rows, redactor.changed) == (1, 1)
    expected = re.sub(r"jo@x\.org", "[EMAIL]", json.dumps(row))
    for value, kind in (
        (r"\+49 170 1234567", "PHONE"), ("www.x.org", "URL"), ("10.0.0.19", "IPV4"), ("123-45-6789", "SSN"), ("fe80::1", "IPV6"),
    ):  # fmt: skip
        expected = re.sub(value, f"[{kind}]", expected)
    assert after.decode() == expected


def test_every_other_byte_of_a_jsonl_file_stays(tmp_path):
    path = tmp_path / "rows.jsonl"
    before = (
        '\ufeff{"b":1.0e5,  "a" : "\\u00e4 \\/ jo@x.org", "n":[1,  2.50, null,true]}\r\n'
        "\n"
        '{"text": "ä jo@x.org \\ud83d\u2028", "z": "\\u00e4\\/"}\n'
        '{"text": "\\u0041 nothing \\/ here", "x": -0.0}'
    ).encode(errors="surrogatepass")
    path.write_bytes(before)
    after, redactor = redact(path)
    # of the string itself: its escapes are written the way of the rest of it, ASCII or not
    assert after == before.replace(b"\\u00e4 \\/ jo@x.org", b"\\u00e4 / [EMAIL]").replace(
        "ä jo@x.org \\ud83d\u2028".encode(), "ä [EMAIL] \\ud83d\u2028".encode()
    )
    assert (redactor.rows, redactor.changed) == (3, 2)


def test_a_json_file_keeps_its_layout(tmp_path):
    path = tmp_path / "rows.json"
    text = json.dumps([{"text": "jo@x.org", "n": 1.5}, {"text": "b"}, {"more": {"deep": ["www.x.org"]}}], indent=3)
    path.write_text(text + "\n")
    after, redactor = redact(path)
    assert after.decode() == text.replace("jo@x.org", "[EMAIL]").replace("www.x.org", "[URL]") + "\n"
    assert (redactor.rows, redactor.changed) == (3, 2)
    assert redactor.found == {("text", "email"): 1, ("more.deep[]", "url"): 1}
    for text, rows in (("[]", 0), (" [ ]\n", 0), ('{"a": "jo@x.org"}\n{"a": 1}\n', 2)):
        path.write_text(text)
        after, redactor = redact(path)
        assert after.decode() == text.replace("jo@x.org", "[EMAIL]") and redactor.rows == rows


def test_a_csv_file_keeps_its_quotes_and_ends(tmp_path):
    path = tmp_path / "rows.csv"
    text = 'prompt,completion,n\r\n"say ""hi"", jo@x.org",5" of jo@x.org,007\r\nplain,"two\nlines",\r\n,b,c@d\r\n'
    path.write_bytes(text.encode())
    after, redactor = redact(path)
    assert after.decode() == text.replace("jo@x.org", "[EMAIL]")
    assert (redactor.rows, redactor.changed) == (3, 1)
    assert redactor.found == {("prompt", "email"): 1, ("completion", "email"): 1}


def test_a_parquet_file_keeps_its_types(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    kinds = pa.schema(
        [("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))), ("n", pa.int32()), ("data", pa.binary())],
        metadata={"of": "mine"},
    )  # fmt: skip
    rows = [{"messages": [{"role": "user", "content": f"jo{i}@x.org"}], "n": i, "data": b"\xff"} for i in range(1500)]
    rows += [{"messages": None, "n": None, "data": None}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, kinds), path)
    _, redactor = redact(path)
    after = parquet.read_table(tmp_path / "out.parquet")
    assert after.schema.equals(parquet.read_table(path).schema, check_metadata=True) and (
        redactor.rows,
        redactor.changed,
    ) == (1501, 1500)
    assert after.schema.field("messages").type.value_type.field("content").type == pa.large_string()
    assert after.to_pylist()[1499] == {"messages": [{"role": "user", "content": "[EMAIL]"}], "n": 1499, "data": b"\xff"}
    assert after.to_pylist()[1500] == rows[1500] and redactor.found == {("messages[].content", "email"): 1500}
    assert read_file(tmp_path / "out.parquet")[0]["messages"][0]["content"] == "[EMAIL]"


def test_json_inside_of_a_string_stays_json(tmp_path):
    r"""Of "\njo@x.org" in JSON text, the n belongs to the line's end and not to the address."""
    arguments = json.dumps({"to": "a\njo@x.org", "n": 1.50, "keep": "\u00e4"})
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"arguments": arguments}))
    after, redactor = redact(path)
    assert json.loads(json.loads(after)["arguments"]) == {"to": "a\n[EMAIL]", "n": 1.5, "keep": "ä"}
    assert redactor.found == {("arguments.to", "email"): 1}


def test_keys_and_numbers_are_told_and_not_changed(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = '{"card": 4111111111111111, "by": {"jo@x.org": 1}, "ok": 12}'
    path.write_text(text)
    after, redactor = redact(path)
    assert after.decode() == text and redactor.changed == 0 and not redactor.found
    assert redactor.left == {("a number of 'card'", "credit_card"): 1, ("a key of 'by'", "email"): 1}


def test_in_place_and_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "jo@x.org"}\n{"text": ')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not valid JSON"):
        redact(path, path)
    assert path.read_text().startswith('{"text": "jo@x.org"}') and [p.name for p in tmp_path.iterdir()] == [
        "rows.jsonl"
    ]
    path.write_text('{"text": "jo@x.org"}')
    redact(path, path)
    assert path.read_text() == '{"text": "[EMAIL]"}'


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("none.jsonl", "out.jsonl", r"--in .*none.jsonl: expected a .jsonl, .json, .csv, .parquet file that is there"),
        ("rows.jsonl", "out.csv", r"--out .*out.csv: expected the name of a .jsonl file, as --in is one"),
    ],
)
def test_files_that_cannot_be(tmp_path, name, out, message):
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match=message):
        redact(tmp_path / name, tmp_path / out)


def test_a_large_file_is_read_line_by_line(tmp_path):
    """12 MB of rows take far less memory than they are long."""
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    line = json.dumps({"text": "a lamp on a shelf. " * 60}) + "\n"
    path.write_text(line * 10_000)
    tracemalloc.start()
    redact_file(str(path), str(tmp_path / "out.jsonl"), Redactor(patterns(("email",))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000 and (tmp_path / "out.jsonl").stat().st_size == len(line) * 10_000 > 11_000_000
