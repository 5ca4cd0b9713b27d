"""What the page asks of the server: two answers to a question, and what is made of the vote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from posttrain.errors import UserError
from posttrain.serving import replies
from posttrain.serving.api import Streamed
from posttrain.serving.fields import Temperature, Text
from posttrain.serving.matches import SIDES, Matches, Pair
from posttrain.serving.refused import REFUSALS, Refusal
from posttrain.serving.votes import Said


class AskedMatch(BaseModel):
    """POST /arena/match"""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text = Field(description="what a user says; it goes through the chat template")
    models: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two names, or one of them twice (two samples); without them, any two. Which is left is drawn"
    )
    temperature: Temperature = Field(1.0, description="0 is greedy")
    max_new_tokens: int | None = Field(None, ge=1, description="default: the server's --max-new-tokens")


class AskedVote(BaseModel):
    """POST /arena/vote"""

    model_config = ConfigDict(extra="forbid", strict=True)

    match: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    vote: Said


def add_arena(app: FastAPI, matches: Matches) -> None:
    server, votes = matches.server, matches.votes

    async def opened() -> None:
        try:
            await asyncio.to_thread(votes.open)
        except UserError as problem:
            raise Refusal(503, f"{problem} (--votes)", code="votes_not_open") from None

    @app.get("/arena", responses=REFUSALS, tags=["the page"])
    async def arena() -> dict[str, Any]:
        """Who can be compared, and how it stands."""
        await opened()
        return {
            "models": list(server.voices),
            "max_new_tokens": server.max_new_tokens,
            "votes": str(votes.path),
            "pairs": votes.made,
            "standing": votes.standing(list(server.voices)),
        }

    @app.post("/arena/match", responses=REFUSALS, tags=["the page"], response_model=None)
    async def match(asked: AskedMatch) -> Response:
        """Server-sent events: {left, right}, the text that is new, until both answers have ended; then {match, ended},
        the name to vote under, and how each has ended (stop, or length: cut off)."""
        if not asked.prompt.strip():
            raise Refusal(422, "prompt: it is empty", param="prompt")
        await opened()
        names = matches.draw(asked.models)
        pair = await server.reading(lambda: Pair(server, asked.prompt, names, asked.temperature, asked.max_new_tokens))
        pair.begin()  # refused, where it is, before a status is sent
        return Streamed(streamed(matches, pair), pair)

    @app.post("/arena/vote", responses=REFUSALS, tags=["the page"])
    async def vote(asked: AskedVote) -> dict[str, Any]:
        """Who it was, what the reward function gives, and how the two stand. It is on the disk when this answers."""
        await opened()
        return await matches.vote(asked.match, asked.vote) | {"pairs": votes.made}


async def streamed(matches: Matches, pair: Pair) -> AsyncIterator[str]:
    counters = matches.server.counters
    try:
        async for pieces in pair:
            if any(pieces):
                yield replies.event(dict(zip(SIDES, pieces, strict=True)))
    except Refusal as refusal:  # the status has been sent: said as an event
        counters.refused(refusal.status)
        yield replies.event(refusal.body())
        return
    for conversation in pair.conversations:
        counters.answered(conversation)
    ended = {side: c.answers[0].end for side, c in zip(SIDES, pair.conversations, strict=True)}
    yield replies.event({"match": matches.put(pair.match()), "ended": ended})
