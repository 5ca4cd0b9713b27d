"""*Write the loss.* A blank is a file of losses/ without the lines that are the loss: docstring, equation, shapes,
pencil numbers and refusals stay. It is cut from the file as it stands, so it cannot grow stale.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from posttrain import ROOT
from posttrain.errors import UserError


@dataclass(frozen=True)
class Hole:
    """Lines of a function, both ends included, each named by what it begins with, that are the student's to write."""

    function: str
    first: str
    last: str
    wanted: str  # what has to stand there afterwards, by name and shape


@dataclass(frozen=True)
class Blank:
    """An exercise: which file of losses/, and its holes."""

    name: str
    task: str
    module: str
    holes: tuple[Hole, ...]
    without: tuple[str, ...] = ()  # names that the file imports and that would give the answer
    purity: tuple[str, ...] = ()  # its rows in tests/losses/test_purity.py
    remark: str = ""  # printed under the answer

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(hole.function for hole in self.holes))

    @property
    def minutes(self) -> int:
        return 5 + 5 * len(self.holes)

    def stub(self) -> str:
        """The file to write in."""
        lines = self._source().splitlines()
        for hole, (first, last) in reversed(list(zip(self.holes, self._spans(lines), strict=True))):
            indent = " " * (len(lines[first]) - len(lines[first].lstrip()))
            lines[first : last + 1] = [
                f"{indent}# YOUR LINES: {hole.wanted}",
                f'{indent}raise NotImplementedError("{hole.function}: {hole.wanted}")',
            ]
        text = "\n".join(lines) + "\n"
        for name in self.without:
            text = text.replace(f"import {name}, ", "import ").replace(f", {name}", "", 1)
        return text

    def answer(self) -> str:
        """The lines that were cut out."""
        lines = self._source().splitlines()
        parts = []
        for hole, (first, last) in zip(self.holes, self._spans(lines), strict=True):
            parts.append("\n".join([f"# {hole.function}", *lines[first : last + 1]]))
        return "\n\n".join([*parts, *[self.remark] * bool(self.remark)]) + "\n"

    def _source(self) -> str:
        """The file without its walk-through, which works the answer out in plain floats."""
        text = (ROOT / self.module).read_text(encoding="utf-8")
        return text.partition("\n\ndef walk_through(")[0] + "\n"

    def _spans(self, lines: list[str]) -> list[tuple[int, int]]:
        """(first, last) line of each hole, in the order of the file."""
        found = []
        tree = {n.name: n for n in ast.parse("\n".join(lines)).body if isinstance(n, ast.FunctionDef)}
        for hole in self.holes:
            node = tree[hole.function]
            inside = range(node.body[0].lineno, node.end_lineno or 0)

            def at(start: str, inside: range = inside, hole: Hole = hole) -> int:
                places = [i for i in inside if lines[i].strip().startswith(start)]
                if not places:
                    raise UserError(f"{self.module}, {hole.function}: no line begins with {start!r}: mend blanks.py")
                return places[0]

            found.append((at(hole.first), at(hole.last)))
        if found != sorted(found):
            raise UserError(f"exercise {self.name}: its holes are not in the order of {self.module}: mend blanks.py")
        return found


BLANKS = [
    Blank(
        "sft",
        "cross-entropy on the completion",
        "losses/sft.py",
        (Hole("completion_cross_entropy", "nll =", "loss =", "nll [B, T], loss []"),),
        purity=("sft",),
    ),
    Blank(
        "dpo",
        "direct preference optimisation",
        "losses/dpo.py",
        (
            Hole(
                "dpo_loss",
                "rewards_chosen",
                "loss =",
                "rewards_chosen, rewards_rejected, margin [B]; loss [], with label smoothing",
            ),
        ),
        purity=("dpo",),
    ),
    Blank(
        "ipo",
        "identity preference optimisation: the margin is drawn to a target",
        "losses/ipo.py",
        (Hole("ipo_loss", "difference =", "loss =", "h and the loss per pair [B]; loss []"),),
        purity=("ipo",),
    ),
    Blank(
        "advantages",
        "from rewards to advantages: GRPO's, Dr. GRPO's, leave-one-out",
        "losses/advantages.py",
        (
            Hole(
                "group_relative_advantages",
                "advantages =",
                "return",
                "return A [N]; a group of equal rewards gives exactly 0",
            ),
            Hole("leave_one_out_advantages", "others =", "return", "return A [N]; the same of equal rewards"),
        ),
    ),
    Blank(
        "k3",
        "estimates of the KL, and the one whose gradient is right",
        "losses/kl.py",
        (
            Hole("k1", "return", "return", "return k1 [B, T]"),
            Hole("k2", "return", "return", "return k2 [B, T]"),
            Hole("k3", "log_r =", "return", "return k3 [B, T], exact near 0, too"),
            Hole("k3_is", "ratio =", "return", "return k3_is [B, T], with the ratio's gradient"),
        ),
    ),
    Blank(
        "grpo",
        "the clipped surrogate",
        "losses/grpo.py",
        (
            Hole(
                "grpo_loss",
                "ratio =",
                "per_token, is_clipped =",
                "ratio, per_token [B, T]; is_clipped [B, T] bool, where the clip changes the value",
            ),
            Hole("grpo_loss", "loss =", "loss =", "loss []"),
        ),
        without=("clipped_surrogate",),
        purity=("grpo",),
        remark="# clipped_surrogate stands in losses/ppo.py: python -m posttrain.exercises ppo --show",
    ),
    Blank(
        "gae",
        "credit for every token: the KL in the reward, generalised advantage estimation, whitening",
        "losses/gae.py",
        (
            Hole("kl_shaped_rewards", "rewards =", "return", "return r [B, T]: k1 is there, the score is not yet"),
            Hole("gae", "for t in reversed", "return", "return advantages, returns [B, T]; walk from the end"),
            Hole(
                "whiten",
                "mean =",
                "return torch",
                "return [B, T], population variance; total, squares, count are there",
            ),
        ),
    ),
    Blank(
        "ppo",
        "the clipped policy loss and the clipped value loss",
        "losses/ppo.py",
        (
            Hole(
                "clipped_surrogate",
                "unclipped =",
                "return",
                "return −min(…) per token, and where the clip changes it; two [B, T]",
            ),
            Hole("ppo_policy_loss", "ratio =", "ratio =", "ratio [B, T]"),
            Hole("ppo_value_loss", "unclipped =", "loss =", "unclipped, clipped squared errors [B, T]; loss []"),
        ),
        purity=("ppo policy", "ppo value"),
    ),
]
