"""Prompts that several rows begin with, read once: the answers to one prompt, or the two sides of a pair.

    rows as the loss sees them             what goes through the model, one row without padding
    p1 p2 p3 | a1 a2                       p1 p2 p3 | q1 q2 | a1 a2 | b1 b2 b3 | c1
    p1 p2 p3 | b1 b2 b3                     prompts, once each  answers
    q1 q2    | c1

Every answer token sees its own prompt and the answer so far, and so has the hidden state that it has in a row of its
own; every prompt token sees its own prompt. What is computed token by token (all of a block but its attention) is
computed once for each token that is there; attention gathers who sees whom (posttrain/models/sharing.py). With prompts
of P tokens and G answers of C, G · (P + C) tokens become P + G · C, and the padding goes, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

WORTH_IT = 0.8  # share where at most so many of the tokens are left: below that the gathering costs what it saves


@dataclass(frozen=True)
class Shared:
    """M tokens: R prompts, then N answers. Indices are into the M; what lies beyond a row's end repeats token 0, and is
    never looked at."""

    input_ids: Tensor  # [1, M]
    position_ids: Tensor  # [1, M]: an answer's go on from its prompt's
    prompts: Tensor  # [R, P] where a prompt's tokens stand
    answers: Tensor  # [N, C] where an answer's tokens stand
    prompt_of: Tensor  # [N, P] where those of its prompt stand
    prompt_lengths: Tensor  # [N]
    in_prompts: Tensor  # which of R · P are tokens, in their order among the M
    in_answers: Tensor  # which of N · C
    places: Tensor  # [N, S] where the tokens of a batch's rows stand

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> Shared:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def share(rows: list[tuple[list[int], int]]) -> Shared | None:
    """The layout of these rows (ids, tokens of the prompt among them), those with the same prompt together; None where
    a row has no prompt.

    >>> shared = share([([7, 8, 9, 1, 2], 3), ([7, 8, 9, 3, 4, 5], 3), ([7, 9, 6], 2)])
    >>> shared.input_ids.tolist(), shared.position_ids.tolist()
    ([[7, 8, 9, 7, 9, 1, 2, 3, 4, 5, 6]], [[0, 1, 2, 0, 1, 3, 4, 3, 4, 5, 2]])
    >>> shared.places.tolist()
    [[0, 1, 2, 5, 6, 0], [0, 1, 2, 7, 8, 9], [3, 4, 10, 0, 0, 0]]
    """
    if not all(length for _, length in rows):
        return None
    heads = [tuple(row[:length]) for row, length in rows]
    starts: dict[tuple[int, ...], int] = {}  # where each prompt begins among the M
    ids: list[int] = []
    for head in heads:
        if head not in starts:
            starts[head] = len(ids)
            ids += head
    positions = [i for head in starts for i in range(len(head))]
    prompts = [list(range(start, start + len(head))) for head, start in starts.items()]
    answers, places = [], []
    for (row, length), head in zip(rows, heads, strict=True):
        own = list(range(len(ids), len(ids) + len(row) - length))
        ids += row[length:]
        positions += range(length, len(row))
        answers.append(own)
        places.append([*range(starts[head], starts[head] + length), *own])
    at_prompts, in_prompts = _padded(prompts)
    at_answers, in_answers = _padded(answers)
    which = {head: r for r, head in enumerate(starts)}
    return Shared(
        torch.tensor([ids]),
        torch.tensor([positions]),
        at_prompts,
        at_answers,
        at_prompts[[which[head] for head in heads]],
        torch.tensor([length for _, length in rows]),
        in_prompts,
        in_answers,
        _padded(places)[0],
    )


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """([R, width] padded with 0, which of its R · width entries are not padding)"""
    width = max(map(len, rows))
    real = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]).long(), real.flatten().nonzero().squeeze(-1)


class Sharing:
    """Of one run: are prompts shared, and how many tokens has that saved?"""

    def __init__(self, wish: bool | str = "auto"):
        self.wish = wish  # training.share_prompts
        self.on = False  # until the model is known to compute the same (Run.share_prompts)
        self.read, self.rows = 0, 0  # tokens that went through the model, and that would have, padding with them

    def under(self, rows: list[tuple[list[int], int]], whole: int) -> Shared | None:
        """How the tokens of a batch go through the model (see share); None: as they lie, `whole` tokens with the
        padding."""
        shared = share(rows) if self.on else None
        if shared is not None and self.wish == "auto" and shared.tokens > WORTH_IT * whole:
            shared = None
        self.read += whole if shared is None else shared.tokens
        self.rows += whole
        return shared

    def told(self, over_processes: Callable[[float], float]) -> str | None:
        """At the end of a run, on every process."""
        read, rows = over_processes(self.read), over_processes(self.rows)
        if read == rows:
            return None
        return (
            f"prompts read once: {read:,.0f} tokens went through the model in the place of {rows:,.0f}, {1 - read / rows:.0%} fewer "
            "(training.share_prompts)"
        )
