"""One thread computes, everybody else asks it.

    1. do what was handed over to be done between two tokens (load an adapter)
    2. take out the rows whose clients have left
    3. let waiting requests join, in the order they came: as many rows as there is room for, and no more tokens to read
       at once than keeps the others waiting for a moment
    4. one token for every row, model by model
    5. tell each client; rows that have ended leave

Requests of a model share its running batch (running.py); those of another model or adapter have their own.
"""

from __future__ import annotations

import collections
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from posttrain.rollouts.sampling import draw_uniforms
from posttrain.serving.voices import Voice, Voices


class Token(NamedTuple):
    """What a client is told: one token of answer number `answer`, or that it has ended without one."""

    answer: int  # 0 … n − 1
    id: int | None  # None: it was broken off (end is "cancelled" or "error")
    logp: float
    likeliest: list[tuple[int, float]]
    end: str | None  # "stop": the token ended the turn; "length": no more are allowed; None: it goes on


class Full(Exception):
    """Too many are waiting. seconds: when it may be worth asking again."""

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full: try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The engine takes no more requests."""


@dataclass(eq=False)
class Request:
    """n answers to one prompt. What is drawn depends on the seed alone, as in rollouts.asking.ask(group_size=n)."""

    voice: str
    prompt_ids: list[int]
    max_new_tokens: int
    tell: Callable[[Token], None]  # called in the engine's thread: it must be quick, and never wait
    n: int = 1
    temperature: float = 1.0
    seed: int = 0
    top: int = 0  # tell this many of the likeliest tokens as well
    gone: set[int] = field(default_factory=set)  # answers nobody wants any more


@dataclass(eq=False)
class Row:
    """One answer that is being written."""

    request: Request
    answer: int
    uniforms: Tensor | None  # [max_new_tokens]
    said: int = 0

    def uniform(self) -> float:
        return 0.0 if self.uniforms is None else float(self.uniforms[self.said])


@dataclass
class Counts:
    """Since the start, for /metrics."""

    prompt_tokens: int = 0
    tokens: int = 0  # one a row and step: divided by steps, how full the batch was
    steps: int = 0
    answers: int = 0  # that have ended by themselves
    seconds: float = 0.0  # in which it computed


class Engine:
    def __init__(self, voices: Voices, *, max_rows: int = 32, max_waiting: int = 256, prefill_tokens: int = 4096):
        """max_rows: that are answered at once; max_waiting: answers that may wait for their turn; prefill_tokens: of
        prompts (padded) that are read between two tokens of the others; a longer prompt is read alone."""
        self.voices, self.max_rows = voices, max_rows
        self.max_waiting, self.prefill_tokens = max_waiting, prefill_tokens
        self.rows: dict[str, list[Row]] = {}
        self.waiting: collections.deque[Request] = collections.deque()
        self.between: collections.deque[tuple[Callable[[], Any], Future]] = collections.deque()
        self.counts, self.closing, self.over, self.dead = Counts(), False, False, False
        self.awake = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    # ------------------------------------------------------------ for everybody

    def submit(self, *requests: Request) -> None:
        """All of them or none. Full or Closed: not taken. Where nobody waits, there is room for any number: whoever
        asks for many at once has his turn, too."""
        if (most := max(request.n for request in requests)) > self.max_rows:
            raise ValueError(f"n = {most}: at most {self.max_rows} answers are written at once")
        with self.awake:
            if self.closing or self.dead:
                raise Closed
            waiting = sum(one.n for one in self.waiting)
            if waiting and waiting + sum(request.n for request in requests) > self.max_waiting:
                raise Full(self._patience(waiting))
            self.waiting += requests
            self.awake.notify()

    def cancel(self, request: Request, answer: int | None = None) -> None:
        """Nobody wants this answer (None: any of them) any more. What is told of it after that is on its way."""
        with self.awake:
            request.gone |= set(range(request.n)) if answer is None else {answer}
            self.awake.notify()

    def between_tokens(self, do: Callable[[], Any]) -> Future:
        """Run by the engine's thread when it is between two tokens."""
        done: Future = Future()
        with self.awake:
            if self.closing or self.dead:
                raise Closed
            self.between.append((do, done))
            self.awake.notify()
        return done

    def close(self, *, finish: float = 0.0) -> None:
        """Takes no more; what runs and waits has `finish` seconds to end, then it is told "cancelled"."""
        with self.awake:
            self.closing = True
            self.awake.notify()
        self.thread.join(timeout=finish)  # it ends when nobody is left
        with self.awake:
            self.over = True
            self.awake.notify()
        self.thread.join(timeout=30)

    @property
    def running(self) -> int:
        return sum(map(len, list(self.rows.values())))

    def _patience(self, waiting: int) -> int:
        """Seconds until about half of those who wait have been served, by how fast it has been so far."""
        seconds_an_answer = self.counts.seconds / max(1, self.counts.answers)
        return max(1, min(60, math.ceil(waiting / 2 * seconds_an_answer)))

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while self._once():
                pass
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            with self.awake:
                self.dead = True
                for name in list(self.rows):
                    self._break_off(name, "error")
                for request in self.waiting:
                    _tell_all(request, "error")
                self.waiting.clear()
                for _, done in self.between:
                    if done.set_running_or_notify_cancel():
                        done.set_exception(Closed())
                self.between.clear()

    def _once(self) -> bool:
        """One round. False: closed, and nobody left."""
        with self.awake:
            while not (self.waiting or self.between or self.running or self.closing):
                self.awake.wait()
            if self.closing and not (self.waiting or self.between or self.running):
                return False
            between = list(self.between)
            self.between.clear()
        for do, done in between:  # 1.
            if not done.set_running_or_notify_cancel():
                continue  # whoever wanted it has gone
            try:
                done.set_result(do())
            except Exception as error:
                done.set_exception(error)
        self._leave()  # 2.
        start = time.perf_counter()
        for name, requests in self._admit().items():  # 3.
            self._guarded(name, self._join, name, requests)
        for name in [name for name, rows in self.rows.items() if rows]:
            self._guarded(name, self._step, name)  # 4., 5.
        self.counts.seconds += time.perf_counter() - start
        return True

    def _guarded(self, name: str, do: Callable, *arguments: Any) -> None:
        """What goes wrong in a batch (memory, a broken model) ends the answers of that batch, not the server."""
        try:
            do(*arguments)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._break_off(name, "error")

    def _break_off(self, name: str, why: str) -> None:
        rows = self.rows.pop(name, [])
        if (voice := self.voices.get(name)) is not None:
            voice.running.go_on([], [])
        for row in rows:
            row.request.tell(Token(row.answer, None, 0.0, [], why))

    def _leave(self) -> None:
        with self.awake:
            for request in [r for r in self.waiting if self.over or len(r.gone) == r.n or r.voice not in self.voices]:
                self.waiting.remove(request)
                _tell_all(request, "cancelled")
        for name in [name for name in self.rows if name not in self.voices]:  # an adapter that was unloaded
            self._break_off(name, "cancelled")

    def _admit(self) -> dict[str, list[Request]]:
        """The requests whose turn it is, by model."""
        chosen: dict[str, list[Request]] = {}
        rows, longest, prompts = self.running, 0, 0
        with self.awake:
            while self.waiting:
                request = self.waiting[0]
                longest, prompts = max(longest, len(request.prompt_ids)), prompts + 1
                if rows + request.n > self.max_rows or (prompts > 1 and longest * prompts > self.prefill_tokens):
                    break
                self.waiting.popleft()
                rows += request.n
                if request.voice in self.voices:
                    chosen.setdefault(request.voice, []).append(request)
                else:
                    _tell_all(request, "cancelled")
        return chosen

    def _join(self, name: str, requests: list[Request]) -> None:
        voice = self.voices[name]
        try:
            voice.switch_on()
            uniforms = [
                draw_uniforms(r.n, r.max_new_tokens, seed=r.seed, step=0) if r.temperature > 0 else [None] * r.n
                for r in requests
            ]
            newcomers = voice.running.read([r.prompt_ids for r in requests], [r.n for r in requests])
        except Exception:  # e.g. no memory for a long prompt: those that are being answered go on
            traceback.print_exc(file=sys.stderr)
            for request in requests:
                _tell_all(request, "error")
            return
        rows = self.rows.setdefault(name, [])
        for request, own in zip(requests, uniforms, strict=True):
            rows += [Row(request, i, own[i]) for i in range(request.n)]
        voice.running.join(newcomers)
        self.counts.prompt_tokens += sum(len(request.prompt_ids) for request in requests)

    def _step(self, name: str) -> None:
        voice, rows = self.voices[name], self.rows[name]
        voice.switch_on()
        sampled = voice.running.sample(
            [row.request.temperature for row in rows],
            [row.uniform() for row in rows],
            [row.request.top for row in rows],
        )
        tokens = [self._one(voice, row, *of_row) for row, *of_row in zip(rows, *sampled, strict=True)]
        staying = [i for i, token in enumerate(tokens) if token.end is None]
        self.rows[name] = [rows[i] for i in staying]
        self.counts.steps += 1
        self.counts.tokens += len(rows)
        self.counts.answers += len(rows) - len(staying)
        for row, token in zip(rows, tokens, strict=True):
            row.said += 1
            row.request.tell(token)
        voice.running.go_on(staying, [sampled.tokens[i] for i in staying])

    def _one(self, voice: Voice, row: Row, token: int, logp: float, likeliest: list[tuple[int, float]]) -> Token:
        if self.over or row.answer in row.request.gone:
            return Token(row.answer, None, 0.0, [], "cancelled")
        if not math.isfinite(logp):  # the model's logits are not numbers: it can say nothing
            print(f"{voice.name}: logits that are not finite", file=sys.stderr)
            return Token(row.answer, None, 0.0, [], "error")
        end = "stop" if token in voice.stop_ids else "length" if row.said + 1 == row.request.max_new_tokens else None
        return Token(row.answer, token, logp, likeliest, end)


def _tell_all(request: Request, why: str) -> None:
    for answer in range(request.n):
        request.tell(Token(answer, None, 0.0, [], why))
