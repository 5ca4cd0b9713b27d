"""What training and sampling cost here, and what they are counted to cost (posttrain/models/duration.py, memory.py).

    python -m benchmarks.scaling --out outputs/scaling    about five minutes on two CPU cores, random weights
    python -m benchmarks.scaling --quick --out FOLDER     three small points of each panel

A forward and backward pass over a micro-batch against its rows, their tokens, the answers of a group that share a
prompt, the vocabulary and the model's size; and a rollout against the answers sampled at once. FOLDER gets
results.json (every point: seconds of each round, memory, FLOP, bytes, operations) and scaling.png: points are measured
(median and range), the line is counted, the dotted one linear.
"""

import argparse
import ctypes
import json
import math
import re
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain import models
from posttrain.config import load
from posttrain.errors import clear_exit
from posttrain.models import duration, memory, rates, short_rows
from posttrain.models.duration import Cost, Fit, Row
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.tokens.batch import Example, collate
from posttrain.tokens.shared import Sharing

ROUNDS = 4


@dataclass(frozen=True)
class Point:
    """Rows of `tokens` tokens, the last quarter of them learned; or, with `group`, answers to one prompt of 128."""

    rows: int = 4
    tokens: int = 128
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    group: int = 0  # answers of 32 tokens that share their prompt
    sampled: int = 0  # answers sampled at once, 24 tokens each: a rollout and no training


PANELS = {  # panel: the axis, the points along it
    "rows": ("rows of 128 tokens", [Point(rows=n) for n in (1, 2, 4, 8, 16, 32)]),
    "tokens": ("tokens of 2 rows", [Point(rows=2, tokens=n) for n in (32, 64, 128, 256, 512, 1024, 2048)]),
    "group": ("answers to one prompt", [Point(group=n) for n in (1, 2, 4, 8, 16, 32)]),
    "vocabulary": ("entries of the vocabulary", [Point(vocabulary=n) for n in (1024, 4096, 16_384, 65_536)]),
    "hidden": ("hidden size", [Point(hidden=n) for n in (64, 128, 256, 512, 1024)]),
    "sampled": ("answers sampled at once", [Point(sampled=n) for n in (1, 4, 16, 64, 128)]),
}


def model_of(p: Point) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=p.hidden, intermediate_size=p.hidden * 8 // 3, num_hidden_layers=p.layers)
    heads = max(1, p.hidden // 64)
    more = dict(num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=p.vocabulary, tie_word_embeddings=True, **shape, **more))
    short_rows.use(model)  # as models.load does
    return model


def rows_of(p: Point) -> list[Example]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, p.vocabulary, (count,), generator=generator).tolist()

    if p.group:
        prompt = ids(128)
        return [Example.of(prompt, ids(32)) for _ in range(p.group)]
    learned = p.tokens // 4
    return [Example.of(ids(p.tokens - learned), ids(learned)) for _ in range(p.rows)]


# ---------------------------------------------------------------- measured


class Measured:
    """A point's model, ready to be asked for another round."""

    def __init__(self, p: Point, dtype: torch.dtype):
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        self.point, self.policy, sharing = p, models.CompletionLogps(model_of(p).train()), Sharing(bool(p.group))
        self.policy.keep_bytes = 512 * 2**20
        if p.group:
            sharing.on = self.policy.share_prompts() is None
        self.batch = collate(rows_of(p), 0, sharing)

    def once(self) -> None:
        if n := self.point.sampled:
            uniforms = draw_uniforms(n, 24, seed=0, step=0)
            prompt = self.batch.input_ids[0, :64].tolist()
            with self.autocast:
                sample(
                    self.policy.model,
                    [prompt],
                    group_size=n,
                    max_new_tokens=24,
                    stop_ids=[],
                    pad_id=0,
                    uniforms=uniforms,
                )
        else:
            with self.autocast:
                logps, _ = self.policy(self.batch)
            (-logps.sum()).backward()
            self.policy.zero_grad()

    def seconds(self) -> float:
        started = time.perf_counter()
        self.once()
        return time.perf_counter() - started

    def peak(self) -> float:
        """Bytes above what is there before. nan where the system cannot forget its last peak (not Linux)."""
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
        except (OSError, AttributeError):
            return math.nan
        self.once()
        return resident("VmHWM") - before


def resident(which: str) -> float:
    return 1024.0 * int(re.search(rf"{which}:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))


# ---------------------------------------------------------------- counted


def counted(p: Point, shape: memory.Shape, size: int) -> tuple[Cost, float, tuple[int, int]]:
    """(work, bytes at the peak, tokens that products go over and of a row)"""
    net = duration.Network(shape, size)
    keys = {"model.name": "x", "data.max_length": p.tokens, "training.micro_batch_size": p.rows}
    if p.sampled:
        keys |= {"data.max_length": 88, "grpo.prompts_per_step": 1, "grpo.group_size": max(2, p.sampled)}
        parts = memory.estimate(load(None, keys, method="grpo"), shape, size)
        return net.sampling([64], p.sampled, 24), parts["sampler's cache (not at the same time)"], (512, 64)
    rows = [Row(len(row), row.num_active, row.prompt_length) for row in rows_of(p)]
    laid, learned = duration.laid_out(rows, bool(p.group)), sum(row.learned for row in rows)
    cost = net.forward(laid) + net.backward(laid) + net.head(learned, 512 * 2**20) + net.cast()
    keys |= {"data.max_length": max(2, round(laid.tokens / len(rows))), "training.micro_batch_size": len(rows)}
    parts = memory.estimate(load(None, keys, method="sft"), shape, size)
    return (
        cost,
        sum(parts[name] for name in ("gradients", "activations", "logits")),
        (round(laid.tokens), rows[0].tokens),
    )


def panel(points: list[Point], rounds: int, dtype: torch.dtype) -> list[dict]:
    """Rounds over all points in turn, each beside the machine's rates of that moment: a slow one hits both."""
    ready = [Measured(p, dtype) for p in points]
    shapes = [memory.shape_of(m.policy.model.config) for m in ready]
    works = [counted(m.point, shape, dtype.itemsize) for m, shape in zip(ready, shapes, strict=True)]
    found = [
        asdict(m.point) | {"seconds": [], "rates": [], "bytes": m.peak(), "counted_bytes": size, "work": asdict(cost)}
        for m, (cost, size, _) in zip(ready, works, strict=True)
    ]
    for _ in range(rounds):
        for m, shape, (_, _, tokens), p in zip(ready, shapes, works, found, strict=True):
            p["seconds"].append(m.seconds())
            able = rates.measure(shape, dtype, "cpu", *tokens, m.point.sampled, spend=0.4)
            p["rates"].append(asdict(able))
    return found


def in_seconds(p: dict, fit: Fit) -> list[float]:
    """The counted work at the rates of each round."""
    return [Cost(**p["work"]).seconds(rates.Rates(**able), fit) for able in p["rates"]]


def ratio(p: dict, fit: Fit) -> float:
    """Measured seconds over counted ones: the median over the rounds, each at its own rates."""
    return statistics.median(a / b for a, b in zip(p["seconds"], in_seconds(p, fit), strict=True))


def fitted(points: list[dict]) -> Fit:
    """The two factors that leave the least squared error of the logarithm; no kernel is faster than its own rate."""
    grid = torch.cartesian_prod(torch.arange(1.0, 3.0, 0.02), torch.arange(0.0, 60.0, 0.2))  # [G, 2]
    errors = torch.zeros(len(grid))
    for p in points:
        rounds = zip(p["seconds"], in_seconds(p, Fit(1, 0)), in_seconds(p, Fit(0, 1)), strict=True)
        work, start = (statistics.median(x) for x in zip(*((w / t, s / t) for t, w, s in rounds), strict=True))
        errors += (grid @ torch.tensor([work, start])).log() ** 2
    return Fit(*grid[errors.argmin()].tolist())


# ---------------------------------------------------------------- told


def line(name: str, axis: str, p: dict) -> str:
    seconds, work, x = p["seconds"], p["work"], p[name]
    spread = f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
    of_work, of_start = (statistics.median(in_seconds(p, fit)) for fit in (Fit(1, 0), Fit(0, 1)))
    return (
        f"| {x:,} {axis} | {Cost(**work).flops / 1e9:.2f} | {(work['moved'] + work['softmax']) / 1e6:,.0f} | {work['started']:,.0f} | {spread} | "
        f"{of_work:.4f} + {of_start:.4f} | {p['bytes'] / 2**20:,.0f} | {p['counted_bytes'] / 2**20:,.0f} |"
    )


def kind_of(name: str) -> str:
    return "sampling" if name == "sampled" else "training"


def plot(path: Path, found: dict[str, list[dict]], fits: dict[str, Fit]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(3.2 * len(found), 6.2), layout="constrained", squeeze=False)
    for column, (name, points) in enumerate(found.items()):
        x = [p[name] for p in points]
        middle = [statistics.median(p["seconds"]) for p in points]
        ends = [[m - min(p["seconds"]) for m, p in zip(middle, points, strict=True)], [max(p["seconds"]) - m for m, p in zip(middle, points, strict=True)]]  # fmt: skip
        top, bottom = axes[:, column]
        top.errorbar(x, middle, yerr=ends, fmt="o", capsize=3, label="measured")
        fit = fits[kind_of(name)]
        top.plot(x, [statistics.median(in_seconds(p, fit)) for p in points], label="counted")
        top.plot(x, [middle[-1] * n / x[-1] for n in x], ":", color="grey", label="linear")
        bottom.plot(x, [p["bytes"] / 2**20 for p in points], "o", label="measured")
        bottom.plot(x, [p["counted_bytes"] / 2**20 for p in points], label="counted")
        for axis, what in ((top, "seconds"), (bottom, "MiB at the peak")):
            axis.set(xscale="log", yscale="log", xlabel=PANELS[name][0], ylabel=what if column == 0 else "")
            axis.grid(alpha=0.25, which="both")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*PANELS, []], help="panels; default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"))
    parser.add_argument("--quick", action="store_true", help="three small points of each panel, two rounds")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    with clear_exit():
        options.out.mkdir(parents=True, exist_ok=True)
        print("| | GFLOP | MB moved | operations | seconds (range) | counted: work + starts | MiB | counted |")
        print("|---|---|---|---|---|---|---|---|")
        found: dict[str, list[dict]] = {}
        for name in options.what or PANELS:
            axis, points = PANELS[name]
            if options.quick:
                points = [replace(p, layers=1) for p in points[:3]]
            found[name] = panel(points, 2 if options.quick else ROUNDS, dtype)
            print(*(line(name, axis, p) for p in found[name]), sep="\n", flush=True)
        fits = {}
        for kind in dict.fromkeys(map(kind_of, found)):
            points = [p for name in found if kind_of(name) == kind for p in found[name]]
            fit = fits[kind] = fitted(points)
            ratios = sorted(ratio(p, fit) for p in points)
            print(
                f"{kind}: Fit({fit.work:.2f}, {fit.start:.1f}), measured over counted then {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
        written = {"fitted": {kind: fit._asdict() for kind, fit in fits.items()}, "points": found}
        (options.out / "results.json").write_text(json.dumps(written, indent=1))
        plot(options.out / "scaling.png", found, fits)
        print(f"look at {options.out}/scaling.png")


if __name__ == "__main__":
    main()
