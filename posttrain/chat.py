"""Talk to a model in the terminal, or to two side by side.

    python -m posttrain.chat --model outputs/dpo
    python -m posttrain.chat --model outputs/dpo --compare smollm2
    printf 'Who are you?\\n' | python -m posttrain.chat --model tiny-sft        one line, one turn

While you talk:
    /reset              begin again (the system message stays)
    /system TEXT        say this to it first, and begin again; without TEXT: say nothing first
    /temperature 0.8    sample; 0, the default, is greedy: what evaluation and the server say, too
    /help, /quit        Ctrl-C stops an answer (what has been said stays), Ctrl-D ends the chat

With --compare each model goes on with its own answers."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any
from unicodedata import category

from posttrain.errors import UserError, clear_exit
from posttrain.serving.fields import COLDEST, HOTTEST, SEEDS

HARMLESS = "\n\t\u200c\u200d"  # the last two: joiners, of which scripts and emoji are made (Zs: spaces of other widths)
COMMANDS = __doc__.partition("While you talk:\n")[2].partition("\n\n")[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a hub id, a folder, an adapter (merged), smollm2, tiny-base, tiny-sft, tiny-dpo or tiny-grpo")  # fmt: skip
    add("--compare", metavar="NAME", help="another one, asked the same; shown beside it")
    add("--system", metavar="TEXT", help="what stands before the conversation")
    add("--temperature", type=float, default=0.0, help="default 0: greedy")
    add("--max-new-tokens", type=int, default=512, help="of an answer (default 512)")
    add("--seed", type=int, default=0, help="of what is drawn at a temperature (default 0); another one for each turn")
    add(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: bfloat16 on a GPU, else float32"
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    options = parser.parse_args(arguments)
    with clear_exit("\n(python -m posttrain.chat --help says more)"):
        if options.max_new_tokens < 1 or not 0 <= options.seed < SEEDS:
            raise UserError("--max-new-tokens must be at least 1, --seed at least 0 and below 2**40")
        temperature = _temperature(options.temperature)
        if options.compare == options.model:
            raise UserError("--compare: the same model as --model")
        from posttrain.serving.engine import Engine
        from posttrain.serving.voices import load_all

        names = [options.model] + ([options.compare] if options.compare else [])
        voices, lines = load_all(names, [], device=options.device, dtype=options.dtype, max_length=None)
        for line in lines:
            print(line, file=sys.stderr)
        engine = Engine(voices)
        listen(Chat(engine, options.system, temperature, options.max_new_tokens, options.seed))
        engine.close()


class Chat:
    """One conversation with each of the models."""

    def __init__(self, engine: Any, system: str | None, temperature: float, max_new_tokens: int, seed: int):
        self.engine, self.voices, self.system = engine, list(engine.voices.values()), system
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.reset()

    def reset(self) -> None:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.messages: list[list[dict[str, Any]]] = [list(first) for _ in self.voices]
        self.turn = 0

    def ask(self, text: str) -> Iterator[tuple[int, str]]:
        """(which model, the text that is new). What has been said when the caller stops listening is kept."""
        from posttrain.serving.talk import Turn, spoken

        asked = [[*said, {"role": "user", "content": text}] for said in self.messages]
        how = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed + self.turn}
        turns = [Turn.to(voice, messages, **how) for voice, messages in zip(self.voices, asked, strict=True)]
        self.cut = [False] * len(turns)
        try:
            yield from spoken(self.engine, turns)
        finally:
            self.cut = [turn.answer.end != "stop" for turn in turns]
            answers = [{"role": "assistant", "content": turn.answer.text.strip()} for turn in turns]
            self.messages = [[*messages, answer] for messages, answer in zip(asked, answers, strict=True)]
            self.turn += 1

    def command(self, line: str) -> str:
        """/… -> what to say of it. UserError: not understood."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name == "reset" and not rest:
            self.reset()
            return "from the beginning"
        if name == "system":
            self.system = rest or None
            self.reset()
            return f"from the beginning, with {'no' if self.system is None else 'this'} system message"
        if name == "temperature" and rest:
            try:
                value = float(rest)
            except ValueError:
                raise UserError(f"/temperature {rest}: not a number") from None
            self.temperature = _temperature(value)
            return "greedy" if self.temperature == 0 else f"sampled at temperature {self.temperature:g}"
        if name == "help":
            return COMMANDS
        raise UserError(f"/{name}{' ' + rest if rest else ''}: not known; /help lists what is")


def listen(chat: Chat) -> None:
    """Until the end of the input, or /quit."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text: asked as "\ufffd", not the end of the chat
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - arrows and history in input()
        print(f"{' beside '.join(voice.name for voice in chat.voices)}: /help says what can be typed", file=sys.stderr)
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            break
        if line in ("/quit", "/exit"):
            break
        try:
            if line.startswith("/"):
                print(chat.command(line), file=sys.stderr)
            elif line:
                show(chat, line)
        except UserError as problem:
            print(problem, file=sys.stderr)


def show(chat: Chat, line: str) -> None:
    """The answers, as they come."""
    answers = chat.ask(line)
    side_by_side = len(chat.voices) > 1 and sys.stdout.isatty()
    try:
        texts = columns(chat, answers) if side_by_side else one_after_another(chat, answers)
    except KeyboardInterrupt:
        answers.close()
        print("\n(stopped)", file=sys.stderr)
        return
    if not side_by_side and len(chat.voices) > 1:
        for voice, text in zip(chat.voices, texts, strict=True):
            print(f"[{voice.name}] {text.strip()}", flush=True)
    for voice, cut in zip(chat.voices, chat.cut, strict=True):
        if cut:
            print(f"({voice.name} was cut off: --max-new-tokens {chat.max_new_tokens})", file=sys.stderr)


def one_after_another(chat: Chat, answers: Iterator[tuple[int, str]]) -> list[str]:
    """A single model's answer is printed as it comes; of two, where there is no screen for columns, when they are
    whole."""
    texts = ["" for _ in chat.voices]
    for i, piece in answers:
        texts[i] += printable(piece)
        if len(texts) == 1:
            print(printable(piece), end="", flush=True)
    if len(texts) == 1:
        print(flush=True)
    return texts


def columns(chat: Chat, answers: Iterator[tuple[int, str]]) -> list[str]:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = ["" for _ in chat.voices]

    def table() -> Table:
        out = Table(expand=True)
        for voice in chat.voices:
            out.add_column(Text(voice.name), ratio=1, overflow="fold")
        out.add_row(*(Text(text.strip()) for text in texts))
        return out

    with Live(table(), refresh_per_second=12, vertical_overflow="visible") as live:
        for i, piece in answers:
            texts[i] += printable(piece)
            live.update(table())
    return texts


def printable(text: str) -> str:
    """Without what would move the cursor or change the terminal's colours: a model may say anything."""
    return "".join(c if c.isprintable() or c in HARMLESS or category(c) == "Zs" else "\ufffd" for c in text)


def _temperature(value: float) -> float:
    if not 0 <= value <= HOTTEST:
        raise UserError(f"a temperature is from 0 (greedy) to {HOTTEST:g}, got {value:g}")
    if 0 < value < COLDEST:
        raise UserError(f"a temperature above 0 is at least {COLDEST:g}, got {value:g}")
    return value


if __name__ == "__main__":
    main()
