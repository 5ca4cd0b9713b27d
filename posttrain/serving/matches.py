"""One question, two answers side by side, one vote.

Which model stands on which side is drawn here, and known here alone until the vote. Both answers travel in one stream,
a piece of each at a time: neither the order nor the time in which their pieces arrive tells them apart. The match gets
its name when both have ended; before that there is nothing to vote on.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import UserError, disk_reason
from posttrain.rollouts import calling, rewards
from posttrain.serving.api import Server
from posttrain.serving.conversation import Conversation, Wanted
from posttrain.serving.fields import SEEDS
from posttrain.serving.refused import Refusal
from posttrain.serving.votes import Said, Side, Vote, Votes

SIDES = ("left", "right")


@dataclass
class Match:
    """Both answers, written, and what was said of them."""

    prompt: str
    sides: list[Side]  # left, right
    ids: list[list[int]]  # of both answers, for the reward
    temperature: float
    max_new_tokens: int
    ended: float = field(default_factory=time.monotonic)
    said: Said | None = None
    voting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Pair:
    """Two answers that are being written."""

    def __init__(self, server: Server, prompt: str, names: list[str], temperature: float, max_new_tokens: int | None):
        """names: left, right. Refusal: one of them cannot answer this."""
        self.server, self.prompt, self.temperature = server, prompt, temperature
        voices = [server.voice(name) for name in names]
        if voices[0] is voices[1] and temperature == 0:
            raise Refusal(
                422, "temperature: at 0 a model says the same twice: two samples need one above 0", param="temperature"
            )
        prompts = [server.chat_ids(voice, [{"role": "user", "content": prompt}]) for voice in voices]
        rooms = [server.room(voice, ids, max_new_tokens, "prompt") for voice, ids in zip(voices, prompts, strict=True)]
        self.max_new_tokens = min(rooms)  # the same for both
        self.conversations = [
            Conversation(
                server.engine,
                Wanted(
                    voice, [ids], [self.max_new_tokens], temperature=temperature, seed=secrets.randbelow(SEEDS)
                ),
            )
            for voice, ids in zip(voices, prompts, strict=True)
        ]  # fmt: skip

    def begin(self) -> None:
        """Refusal: the engine does not take them."""
        try:
            for conversation in secrets.SystemRandom().sample(self.conversations, 2):
                conversation.begin()
        except Refusal:
            self.leave()
            raise

    def leave(self) -> None:
        for conversation in self.conversations:
            conversation.leave()

    async def __aiter__(self) -> AsyncIterator[list[str]]:
        """The text that is new, [left, right], until both have ended: the next token of each is waited for."""
        running = [aiter(conversation) for conversation in self.conversations]
        while True:
            steps = await asyncio.gather(*(anext(one, None) for one in running))
            if steps == [None, None]:
                return
            yield ["" if step is None else step[1] for step in steps]

    def match(self) -> Match:
        """When both have ended."""
        answers = [conversation.answers[0] for conversation in self.conversations]
        sides = [
            Side(c.wanted.voice.name, answer.text, answer.end == "stop", c.wanted.seed)
            for c, answer in zip(self.conversations, answers, strict=True)
        ]
        return Match(self.prompt, sides, [answer.ids for answer in answers], self.temperature, self.max_new_tokens)


class Matches:
    def __init__(self, server: Server, votes: Votes, reward: Callable | None = None, *, most: int = 1000, seconds: float = 3600):  # fmt: skip
        """most: that wait for their vote at once; seconds: how long one does. Older ones are forgotten."""
        self.server, self.votes, self.reward, self.most, self.seconds = server, votes, reward, most, seconds
        self.waiting: dict[str, Match] = {}

    def draw(self, models: list[str] | None) -> list[str]:
        """left, right. models: two names, or one twice; None: any two that are served, of a single one two samples."""
        names = models or list(self.server.voices)
        draw = secrets.SystemRandom()
        return draw.sample(names, 2) if len(names) > 1 else names * 2

    def put(self, match: Match) -> str:
        """-> the name under which it waits for its vote."""
        self._forget()
        name = secrets.token_urlsafe(16)
        self.waiting[name] = match
        return name

    def _forget(self) -> None:
        """They stand in the order in which they ended."""
        now = time.monotonic()
        for name, match in list(self.waiting.items()):
            if len(self.waiting) < self.most and now - match.ended < self.seconds:
                break
            del self.waiting[name]

    async def vote(self, name: str, said: Said) -> dict[str, Any]:
        """Who it was, once the vote is on the disk. Said once more (the answer was lost on its way), it is told once
        more, and counted once."""
        match = self.waiting.get(name)
        if match is None or time.monotonic() - match.ended >= self.seconds:
            raise Refusal(404, "no such match any more: ask again", param="match", code="match_not_found")
        async with match.voting:
            if match.said not in (None, said):
                raise Refusal(409, f"the vote was {match.said}: it stays", param="vote", code="voted")
            if match.said is None:
                await self._record(match, said)
        return self._told(match, said)

    async def _record(self, match: Match, said: Said) -> None:
        match.sides = await asyncio.to_thread(self._rewarded, match)
        try:
            await asyncio.to_thread(self.votes.add, self._vote(match, said))
        except OSError as problem:
            print(f"a vote could not be written: {problem}", file=sys.stderr)
            why = disk_reason(problem) or str(problem)
            raise Refusal(503, f"the vote could not be written: {why}: mend it, and vote again", code="vote_not_written") from None  # fmt: skip
        match.said = said

    def _told(self, match: Match, said: Said) -> dict[str, Any]:
        vote = self._vote(match, said)
        sides = {
            name: {"model": side.model, "reward": side.reward} for name, side in zip(SIDES, match.sides, strict=True)
        }
        left, right = (side.model for side in match.sides)
        of = self.votes.standing(list(self.server.voices))
        between = next((one for one in of if {one["model"], one["against"]} == {left, right}), None)
        better = None if vote.winner is None else SIDES[match.sides.index(vote.winner)]
        more = {"better": better, "apart": vote.apart, "between": between, "standing": of}
        return {"vote": said} | sides | more

    def _vote(self, match: Match, said: Said) -> Vote:
        return Vote(match.prompt, *match.sides, said, match.temperature, match.max_new_tokens)

    def _rewarded(self, match: Match) -> list[Side]:
        """A reward function that fails costs nobody a vote."""
        if self.reward is None or match.sides[0].reward is not None:
            return match.sides
        available = {
            "prompts": [match.prompt] * 2,
            "completions": [side.text for side in match.sides],
            "completion_ids": match.ids,
            "finished": [side.finished for side in match.sides],
        }
        try:
            (given,) = calling.call_all([self.reward], available)
        except UserError as problem:
            print(problem, file=sys.stderr)
            return match.sides
        return [
            Side(side.model, side.text, side.finished, side.seed, reward)
            for side, reward in zip(match.sides, given, strict=True)
        ]


def reward_named(name: str) -> Callable:
    """--reward. UserError: there is none, or it asks for what a free question does not have."""
    (function,) = rewards.find(name, key="--reward")
    try:
        calling.refuse_missing([function], rewards.ALWAYS)
    except UserError as problem:
        raise UserError(f"--reward {name}: {problem}: a question on the page is text, and nothing else") from None
    return function
