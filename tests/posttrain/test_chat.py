"""The chat as it is typed, with stdin in place of a keyboard."""

import contextlib
import io
import os
import select
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from kit import tiny_folder

from posttrain import ROOT, chat, models
from posttrain.errors import UserError
from posttrain.rollouts.asking import ask
from posttrain.tokens import template


def talked(lines, *arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.main(list(arguments))
    return capsys.readouterr()


def greedy(name, *conversations, longest):
    """What the model answers to each, as evaluation asks."""
    model, tokenizer, _ = models.load(name)
    ids = [template.prompt_ids(tokenizer, messages) for messages in conversations]
    return ask(model, tokenizer, ids, max_new_tokens=longest).texts(tokenizer)


def user(text):
    return {"role": "user", "content": text}


def test_what_it_says_is_what_evaluation_hears(llama, monkeypatch, capsys):
    """Greedy, with what was said before in the prompt; /reset forgets it, a system message stands first."""
    out = talked(
        ["Hello.", "Again.", "/reset", "Again.", "/system Be brief.", "Again.", "", "/quit", "never asked"],
        "--model", llama, "--max-new-tokens", "12", monkeypatch=monkeypatch, capsys=capsys,
    )  # fmt: skip
    first = greedy(llama, [user("Hello.")], longest=12)[0]
    history = [user("Hello."), {"role": "assistant", "content": first.strip()}, user("Again.")]
    brief = [{"role": "system", "content": "Be brief."}, user("Again.")]
    expected = [first, *greedy(llama, history, [user("Again.")], brief, longest=12)]
    assert len(set(expected)) == 4, "or nothing is shown"
    assert out.out == "".join(chat.printable(text) + "\n" for text in expected)
    assert "from the beginning" in out.err and "cut off: --max-new-tokens 12" in out.err


def test_two_beside_each_other(llama, tmp_path, monkeypatch, capsys):
    other = tiny_folder(tmp_path / "other", seed=1)
    out = talked(["Hello."], "--model", llama, "--compare", other, "--max-new-tokens", "8", monkeypatch=monkeypatch, capsys=capsys).out  # fmt: skip
    for name in (llama, other):
        assert f"[{name}] {chat.printable(greedy(name, [user('Hello.')], longest=8)[0]).strip()}" in out


def test_what_is_typed_wrong_ends_nothing(llama, monkeypatch, capsys):
    out = talked(
        ["/nothing", "/temperature hot", "/temperature -1", "/temperature", "/reset now", "/help", "/temperature 0.7", "x" * 3000, "Hello."],
        "--model", llama, "--max-new-tokens", "4", monkeypatch=monkeypatch, capsys=capsys,
    )  # fmt: skip
    for line in (
        "/nothing: not known; /help lists what is",
        "/temperature hot: not a number",
        "a temperature is from 0 (greedy) to 10, got -1",
        "/temperature: not known",
        "/reset now: not known",
        "/system TEXT",
        "sampled at temperature 0.7",
        "/reset begins another",
    ):
        assert line in out.err
    assert out.out.strip()  # the last line was answered


def test_another_draw_for_each_turn_and_the_same_for_a_seed(llama):
    def conversation(seed):
        from posttrain.serving.engine import Engine
        from posttrain.serving.voices import load_all

        voices, _ = load_all([llama], [], device="cpu", dtype="auto", max_length=None)
        one = chat.Chat(Engine(voices), None, 1.0, 8, seed)
        answers = []
        for _ in range(2):
            answers.append("".join(piece for _, piece in one.ask("Hello.")))
            one.messages = [[]]
        one.engine.close()
        return answers

    assert conversation(0) == conversation(0) != conversation(1)
    assert conversation(0)[0] != conversation(0)[1]


def test_what_would_move_the_cursor_is_not_printed():
    assert chat.printable("a\x1b[2Jb\r\nc\td\x07 é日🎉") == "a\ufffd[2Jb\ufffd\nc\td\ufffd é日🎉"
    assert chat.printable("\u202eab\u200b\u2028\x9b") == "\ufffdab\ufffd\ufffd\ufffd"
    spaced = "10\u00a0km, 日本\u3000語, 👩\u200d👩\u200d👧, می\u200cخواهم"  # spaces of other widths, joiners
    assert chat.printable(spaced) == spaced


def test_bytes_that_are_no_text(llama, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hel\xfflo.\nHello.\n"), encoding="utf-8"))
    chat.main(["--model", llama, "--max-new-tokens", "3"])
    assert capsys.readouterr().err.count("cut off") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "a", "--compare", "a"], "the same model as --model"),
        (["--model", "a", "--temperature", "11"], "a temperature is from 0"),
        (["--model", "a", "--temperature", "1e-50"], "above 0 is at least 1e-06"),
        (["--model", "a", "--max-new-tokens", "0"], "at least 1"),
        (["--model", "a", "--seed", str(2**40)], r"below 2\*\*40"),
        (["--model", "./nowhere"], "no such folder"),
    ],
)
def test_what_is_refused(arguments, says):
    with pytest.raises(SystemExit, match=says):
        chat.main(arguments)


def test_a_template_without_a_system_message(tmp_path, monkeypatch, capsys):
    from kit import tiny_family

    folder = tiny_family(tmp_path, "gemma")
    out = talked(["Hello.", "/system", "Hello."], "--model", folder, "--system", "Be brief.", "--max-new-tokens", "3", monkeypatch=monkeypatch, capsys=capsys)  # fmt: skip
    assert "System role not supported" in out.err
    assert out.out, "and without the system message it answers"


def test_an_unknown_command_is_an_error_of_the_user():
    one = chat.Chat(SimpleNamespace(voices={}), None, 0.0, 8, 0)
    with pytest.raises(UserError, match="not known"):
        one.command("/what")


@pytest.mark.long
def test_on_a_terminal(tmp_path):
    """Two columns while they speak; Ctrl-C stops the answer, Ctrl-D the chat."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "posttrain.chat", "--model", "tiny-sft", "--compare", "tiny-dpo"],
        cwd=ROOT, stdin=child, stdout=child, stderr=child, env=os.environ | {"COLUMNS": "80", "TERM": "xterm"}, close_fds=True,
    )  # fmt: skip
    os.close(child)
    heard = b""

    def read(seconds):
        """False: nothing came, or the terminal is closed."""
        nonlocal heard
        with contextlib.suppress(OSError):
            if select.select([parent], [], [], max(0.0, seconds))[0]:
                heard += (more := os.read(parent, 4096))
                return bool(more)
        return False

    def until(*texts, since=0):
        """-> how much has been heard by the time all of these have been."""
        end = time.monotonic() + 90
        while not all(text in heard[since:] for text in texts):
            assert read(end - time.monotonic()), heard.decode(errors="replace")
        return max(heard.index(text, since) + len(text) for text in texts)

    try:
        asked = until(b"> ")
        os.write(parent, b"Who are you?\n")
        until(b"Nova", b"Robin", "│".encode(), since=asked)
        os.write(parent, b"/help\n")
        helped = until(b"ends the chat", since=asked)
        until(b"> ", since=helped)  # before it asks, a terminal takes Ctrl-D for itself
        os.write(parent, b"\x04")
        while read(90):  # what it still says is to be read, or it waits for that
            pass
        assert process.wait(90) == 0
    finally:
        process.kill()
        os.close(parent)
