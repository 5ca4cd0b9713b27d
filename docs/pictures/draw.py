"""python docs/pictures/draw.py: writes every picture of this folder as SVG. Its numbers come from losses/, so a picture
that no longer says what the code does is found by tests/test_pictures.py."""

import html
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import torch

from losses.advantages import group_relative_advantages
from losses.dpo import dpo_loss
from losses.grpo import grpo_loss
from losses.sft import completion_cross_entropy
from losses.weights import step_total, token_weights

BLUE, GREEN, GREY, YELLOW, RED, WHITE = "#dbe7f5", "#cdeccd", "#eeeeee", "#fdf1d7", "#f6d3cf", "#ffffff"
INK, SOFT, STRONG_GREEN, STRONG_RED, STRONG_BLUE = "#111111", "#445566", "#1c7c3a", "#b3261e", "#2457a5"
MONO = "ui-monospace, DejaVu Sans Mono, monospace"


class Sheet:
    """SVG by hand: boxes, words, arrows, curves."""

    def __init__(self, width: int, height: int, says: str):
        self.width, self.height, self.says, self.parts = width, height, says, []

    def box(
        self, x: float, y: float, w: float, h: float, fill: str = WHITE, stroke: str = "#667788", radius: int = 4
    ) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'
        )

    def word(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        at: str = "middle",
        ink: str = INK,
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        if not text:
            return
        family = f' font-family="{MONO}"' if mono else ""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{at}" fill="{ink}"{family}{weight}>{html.escape(text, quote=False)}</text>'
        )

    def cell(
        self, x: float, y: float, w: float, h: float, text: str, fill: str = WHITE, size: float = 12, mono: bool = True
    ) -> None:
        self.box(x, y, w, h, fill)
        self.word(x + w / 2, y + h / 2 + size * 0.36, text, size, mono=mono)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, ink: str = SOFT, wide: float = 1.4) -> None:
        length = math.hypot(x2 - x1, y2 - y1)
        ux, uy = (x2 - x1) / length, (y2 - y1) / length
        bx, by = x2 - 7 * ux, y2 - 7 * uy
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{bx:.1f}" y2="{by:.1f}" stroke="{ink}" stroke-width="{wide:g}"/>'
        )
        tip = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in ((x2, y2), (bx - 3.5 * uy, by + 3.5 * ux), (bx + 3.5 * uy, by - 3.5 * ux))
        )
        self.parts.append(f'<polygon points="{tip}" fill="{ink}"/>')

    def curve(self, points: list[tuple[float, float]], ink: str, wide: float = 2, dashes: str = "") -> None:
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}" stroke-width="{wide:g}"{dash}/>')

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="system-ui, sans-serif" role="img" '
            f'aria-label="{html.escape(self.says)}">'
        )
        return "\n".join(
            [head, f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>', *self.parts, "</svg>", ""]
        )


def tokens() -> Sheet:
    """Text, ids, mask, shift, weights: one row of tiny-sft, padded by two."""
    text = ["<|im_start|>", "user", "⏎", "What", "␣is", "␣2", "␣+", "␣3", "?", "<|im_end|>", "⏎", "<|im_start|>", "assistant", "⏎", "####", "␣5", "<|im_end|>", "pad", "pad"]  # fmt: skip
    ids = [1, 763, 202, 431, 300, 264, 270, 271, 34, 2, 202, 1, 762, 202, 333, 275, 2, 3, 3]
    kinds = [BLUE] * 14 + [GREEN] * 3 + [GREY] * 2
    mask = torch.tensor([[k == GREEN for k in kinds]])
    weights = token_weights(mask[:, 1:])[0].tolist()  # [T]
    s = Sheet(
        1120,
        372,
        "A conversation as tokens, their ids, which of them are learned, which prediction scores which token, and what each counts in the loss",
    )
    left, w, h = 118, 52, 28

    def row(y: float, name: str, what: str) -> None:
        s.word(8, y + 12, name, 13, "start", bold=True)
        s.word(8, y + 26, what, 10, "start", SOFT)

    row(20, "text", "chat template")
    row(70, "ids [S]", "S = 19")
    row(120, "mask", "by length only")
    row(206, "logits at t", "predict token t + 1")
    row(256, "active [T]", "mask[1:], T = 18")
    row(306, "weights [T]", "1 / active tokens")
    for i, (t, n, k) in enumerate(zip(text, ids, kinds, strict=True)):
        x = left + i * w
        s.cell(x, 20, w - 4, h, t if len(t) < 8 else t[:6] + "…", k, 9.5)
        s.cell(x, 70, w - 4, h, str(n), k, 11)
        s.cell(x, 120, w - 4, h, "✓" if k == GREEN else "·", k, 12)
    for t in range(18):
        x = left + t * w
        on = kinds[t + 1] == GREEN
        s.cell(x, 206, w - 4, h, f"t = {t}", YELLOW if on else WHITE, 10)
        s.arrow(x + w / 2 - 2, 204, x + w * 1.5 - 2, 151, STRONG_GREEN if on else "#c3ccd6", 1.8 if on else 1)
        s.cell(x, 256, w - 4, h, "✓" if on else "·", GREEN if on else WHITE, 12)
        s.cell(x, 306, w - 4, h, f"{weights[t]:.3f}" if on else "0", GREEN if on else WHITE, 10.5)
    s.word(
        left,
        356,
        "blue: prompt · green: completion, with the token that ends the turn · grey: padding · loss = Σ weight · −log π(token)",
        12,
        "start",
        SOFT,
    )
    return s


def dpo_pair() -> Sheet:
    """One DPO pair, with the numbers of python -m losses.dpo."""
    sides = [torch.tensor([x], requires_grad=i < 2) for i, x in enumerate((-10.0, -12.0, -11.0, -11.0))]
    loss, metrics = dpo_loss(*sides, beta=0.1)
    loss.backward()
    good, bad, margin = (metrics[name][0].item() for name in ("rewards_chosen", "rewards_rejected", "margin"))
    s = Sheet(
        1000,
        316,
        "One DPO pair: log-probabilities of both answers under policy and reference, two implicit rewards, a margin, a loss, and the push it gives",
    )
    s.cell(16, 122, 110, 44, "prompt x", BLUE, 13)
    for y, name, fill, policy, ref, reward in (
        (56, "chosen y_w", GREEN, -10, -11, good),
        (186, "rejected y_l", RED, -12, -11, bad),
    ):
        s.arrow(128, 144, 172, y + 24)
        s.cell(174, y, 120, 48, name, fill, 13)
        s.arrow(296, y + 12, 336, y + 4)
        s.arrow(296, y + 36, 336, y + 48)
        s.cell(338, y - 12, 196, 30, f"policy: Σ log π = −{-policy}", WHITE, 12)
        s.cell(338, y + 32, 196, 30, f"reference: Σ log π = −{-ref}", GREY, 12)
        s.arrow(536, y + 4, 576, y + 18)
        s.arrow(536, y + 48, 576, y + 34)
        s.cell(578, y + 4, 178, 40, f"β (−{-policy} + {-ref}) = {_signed(reward, 1)}", YELLOW, 12)
        s.arrow(758, y + 24, 802, 144)
    s.cell(804, 112, 180, 32, f"margin h = {margin:.1f}", YELLOW, 13)
    s.cell(804, 150, 180, 32, f"−log σ(h) = {loss.item():.4f}", YELLOW, 13)
    s.word(234, 44, f"pushed up by {-sides[0].grad.item():.4f}", 12, ink=STRONG_GREEN, bold=True)
    s.word(234, 254, f"pushed down by {sides[1].grad.item():.4f}", 12, ink=STRONG_RED, bold=True)
    s.word(
        16,
        282,
        "β = 0.1. The push on both answers is β (1 − σ(h)): the same size, smaller the more the pair is won. Only the difference is learned:",
        12,
        "start",
        SOFT,
    )
    s.word(
        16,
        300,
        "both log-probabilities may fall together. At step 0 policy = reference, h = 0, and the loss is ln 2 = 0.6931.",
        12,
        "start",
        SOFT,
    )
    return s


def grpo_step() -> Sheet:
    """One GRPO step: one prompt, eight answers, three of them right."""
    answers = [
        "So 3 + 4 = 7. #### 7",
        "#### 9",
        "So 3 + 4 = 7. #### 7",
        "#### 12",
        "#### 8",
        "So 3 + 4 = 8. #### 8",
        "#### 7",
        "#### 6",
    ]
    rewards = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 0])
    advantages = group_relative_advantages(rewards, 8).tolist()
    s = Sheet(
        1000,
        400,
        "One GRPO step: a prompt, eight sampled answers, a reward for each, advantages against the group, and which tokens become likelier",
    )
    s.cell(16, 150, 168, 64, "", BLUE)
    for i, line in enumerate(("Tom has 3 pens.", "He buys 4 more.", "How many now?")):
        s.word(100, 170 + 17 * i, line, 11.5, mono=True)
    for x, head in (
        (330, "1. sample a group"),
        (530, "2. reward"),
        (650, "3. advantage"),
        (846, "4. update: every token by A"),
    ):
        s.word(x, 24, head, 13, bold=True)
    for i, (text, r, a) in enumerate(zip(answers, rewards.tolist(), advantages, strict=True)):
        y, up = 40 + 38 * i, a > 0
        s.arrow(186, 182, 228, y + 15, "#9aa7b4")
        s.cell(230, y, 210, 30, text, WHITE, 11.5)
        s.arrow(442, y + 15, 496, y + 15)
        s.cell(498, y, 64, 30, f"{r:g}", GREEN if r else RED, 13)
        s.arrow(564, y + 15, 602, y + 15)
        s.cell(604, y, 92, 30, _signed(a, 4), GREEN if up else RED, 12)
        pieces = len(text.split())
        for k in range(pieces):
            s.box(716 + 26 * k, y + 4, 22, 22, GREEN if up else RED)
            s.word(727 + 26 * k, y + 19, "▲" if up else "▼", 11, ink=STRONG_GREEN if up else STRONG_RED)
    s.word(
        16,
        366,
        "A = (r − mean) / std of the group: 3 of 8 right, so a right answer gets +1.21 and a wrong one −0.72. All right or all wrong: A = 0, a dead group.",
        12,
        "start",
        SOFT,
    )
    s.word(
        16,
        384,
        "loss = Σ w · (−min(ρ A, clip(ρ) A) + β KL). Right by luck (“#### 7”) counts as much as right by work: over many groups the habit that pays wins.",
        12,
        "start",
        SOFT,
    )
    return s


def window() -> Sheet:
    """The counted window: 2 processes × 3 micro-batches."""
    counts = [[4, 3, 2], [5, 1, 3]]
    nll = [[4.0, 6.0, 2.0], [5.0, 4.0, 6.0]]  # Σ −log π over the tokens of each micro-batch
    total = step_total([n for process in counts for n in process])
    parts = [
        [
            completion_cross_entropy(torch.full((1, n), -x / n), torch.full((1, n), 1 / total))[0].item()
            for n, x in zip(ns, xs, strict=True)
        ]
        for ns, xs in zip(counts, nll, strict=True)
    ]
    whole = sum(map(sum, parts))
    wrong = sum(x / n for ns, xs in zip(counts, nll, strict=True) for n, x in zip(ns, xs, strict=True)) / 6
    s = Sheet(
        1000,
        376,
        "One optimiser step: two processes with three micro-batches each; tokens are counted first over all six, then each part weighs its tokens with that total",
    )
    s.word(
        12,
        26,
        f"1. Count first: {' + '.join(str(n) for p in counts for n in p)} = {total} tokens, summed over both processes",
        14,
        "start",
        bold=True,
    )
    s.word(
        12,
        58,
        "2. Forward and backward, one micro-batch at a time; every token weighs 1 / 18, wherever it is",
        14,
        "start",
        bold=True,
    )
    for p, (ns, xs, ls) in enumerate(zip(counts, nll, parts, strict=True)):
        y = 78 + 96 * p
        s.word(12, y + 38, f"process {p}", 13, "start")
        for m, (n, x, part) in enumerate(zip(ns, xs, ls, strict=True)):
            left = 100 + 210 * m
            s.box(left, y, 196, 78, YELLOW)
            for k in range(n):
                s.box(left + 10 + 20 * k, y + 8, 16, 16, GREEN)
            s.word(left + 98, y + 46, f"{n} token{'s' * (n > 1)}, Σ −log π = {x:g}", 12)
            s.word(left + 98, y + 66, f"loss {x:g} / {total} = {part:.4f}", 12, bold=True)
        s.arrow(732, y + 39, 782, 172)
    s.cell(784, 136, 204, 34, f"Σ = {whole:.4f}", GREEN, 14)
    s.word(886, 190, f"= {sum(map(sum, nll)):g} / {total}, the mean of all", 12, ink=SOFT)
    s.word(886, 206, "18 tokens, however it is cut", 12, ink=SOFT)
    s.word(
        12,
        300,
        "3. DDP averages gradients over processes, so each loss is multiplied by their number, 2, before backward.",
        14,
        "start",
        bold=True,
    )
    s.word(
        12,
        330,
        f"Wrong: the mean of the six micro-batches' means is {wrong:.4f}. The single token of process 1's second micro-batch would count as much as five others",
        12,
        "start",
        STRONG_RED,
    )
    s.word(
        12,
        348,
        "together, and another micro_batch_size, or another number of processes, would be another loss.",
        12,
        "start",
        STRONG_RED,
    )
    return s


def where_they_act() -> Sheet:
    """Where the clip and β act."""
    s = Sheet(
        1000,
        330,
        "Three graphs: the clipped objective for a good and for a bad answer, and how hard DPO still pushes as the gap grows, for three values of beta",
    )

    def axes(
        x: float, title: str, under: str, xs: tuple[float, float], ys: tuple[float, float], marks: list[float]
    ) -> Callable[[float, float], tuple[float, float]]:
        def at(a: float, b: float) -> tuple[float, float]:
            return x + 260 * (a - xs[0]) / (xs[1] - xs[0]), 250 - 190 * (b - ys[0]) / (ys[1] - ys[0])

        s.box(x, 60, 260, 190, WHITE, "#99a5b1", 0)
        s.word(x + 130, 46, title, 13, bold=True)
        for mark in marks:
            s.word(at(mark, 0)[0], 266, f"{mark:g}", 11, ink=SOFT)
        s.word(x + 130, 284, under, 12, ink=SOFT)
        return at

    for x, advantage, title in ((50, 1.0, "a good answer, A = +1"), (380, -1.0, "a bad answer, A = −1")):
        ratios = [0.5 + 0.01 * i for i in range(111)]
        values = [
            -grpo_loss(torch.tensor([[math.log(r)]]), torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1))[
                0
            ].item()
            for r in ratios
        ]
        at = axes(
            x, title, "ratio ρ = π / π_old", (0.5, 1.6), (min(values) - 0.1, max(values) + 0.1), [0.5, 0.8, 1, 1.2, 1.6]
        )
        x1, x2 = at(0.8, 0)[0], at(1.2, 0)[0]
        s.box(x1, 61, x2 - x1, 188, "#eef4fb", "#eef4fb", 0)
        s.curve([at(r, v) for r, v in zip(ratios, values, strict=True)], STRONG_BLUE, 2.4)
        flat = (1.42, values[92]) if advantage > 0 else (0.66, values[16])
        fx, fy = at(*flat)
        s.word(fx, fy - 12, "flat: no push", 12, ink=STRONG_RED)
        s.word(
            x + 130,
            304,
            "clip: " + ("beyond 1.2 it is likely enough" if advantage > 0 else "below 0.8 it is rare enough"),
            11.5,
            ink=SOFT,
        )
    at = axes(
        710,
        "DPO's push, as a share of its first",
        "gap won since step 0, in nats",
        (0, 60),
        (0, 1.05),
        [0, 20, 40, 60],
    )
    for beta, ink in ((0.1, STRONG_BLUE), (0.2, STRONG_GREEN), (0.5, STRONG_RED)):
        pushes = []
        for i in range(121):
            chosen, zero = torch.tensor([i / 2], requires_grad=True), torch.zeros(1)
            dpo_loss(chosen, zero, zero, zero, beta=beta)[0].backward()
            pushes.append((i / 2, -chosen.grad.item() / (beta / 2)))
        s.curve([at(a, b) for a, b in pushes], ink, 2.4)
    for y, beta, ink in ((86, 0.1, STRONG_BLUE), (104, 0.2, STRONG_GREEN), (122, 0.5, STRONG_RED)):
        s.word(900, y, f"β = {beta}", 12, "start", ink, bold=True)
    s.word(840, 304, "a larger β stops pushing at a smaller gap", 11.5, ink=SOFT)
    return s


def ladder() -> Sheet:
    """Two questions at the four stages of one ladder, as recorded in ladder.json."""
    told = json.loads((HERE / "ladder.json").read_text(encoding="utf-8"))
    stages, questions = told["stages"], told["questions"]
    s = Sheet(
        1000, 98 + 76 * len(stages), "What the four models of one ladder answer to two questions: base, SFT, DPO, GRPO"
    )
    for i, question in enumerate(questions):
        s.cell(150 + 424 * i, 14, 412, 44, "", BLUE)
        lines = _wrapped(question, 58)
        for k, line in enumerate(lines):
            s.word(356 + 424 * i, 41 - 8 * (len(lines) - 1) + 16 * k, line, 12.5)
    for row, (stage, what) in enumerate(stages.items()):
        y = 70 + 76 * row
        s.word(12, y + 20, stage, 16, "start", bold=True)
        for k, line in enumerate(_wrapped(what["lesson"], 19)):
            s.word(12, y + 36 + 13 * k, line, 11, "start", SOFT)
        for i, (answer, good) in enumerate(what["answers"]):
            s.box(150 + 424 * i, y, 412, 66, GREEN if good else RED)
            for k, line in enumerate(_wrapped(answer.replace("⏹", "■"), 52)[:3]):
                s.word(164 + 424 * i, y + 20 + 17 * k, line, 12, "start", mono=True)
    s.word(
        150,
        82 + 76 * len(stages),
        "■ the model has ended its turn   … it was cut off after 28 tokens. Green: an answer, and a right one.",
        12,
        "start",
        SOFT,
    )
    return s


def _signed(x: float, digits: int) -> str:
    return f"{'+' if x > 0 else '−'}{abs(x):.{digits}f}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return [piece for line in text.split("\n") for piece in textwrap.wrap(line, width)]


PICTURES = {
    "tokens": tokens,
    "dpo_pair": dpo_pair,
    "grpo_step": grpo_step,
    "window": window,
    "where_they_act": where_they_act,
    "ladder": ladder,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
        print(f"wrote docs/pictures/{name}.svg")


if __name__ == "__main__":
    main()
