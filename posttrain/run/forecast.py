"""What a run of a config will take on this machine, for posttrain.doctor: memory and time, in lines to print.

Time is for the rows that the config names, some of which are read and encoded; the model itself is not loaded. Left
out: loading, samples, evaluations, checkpoints, what dpo.precompute does beforehand, and the time of a reward."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from posttrain.errors import UserError, reason
from posttrain.models import duration, memory, rates, size
from posttrain.models.duration import Cost
from posttrain.run import typical
from posttrain.run.launch import compute_dtype


@dataclass(frozen=True)
class Here:
    """The model of a config, on this machine."""

    about: Any  # its transformers config
    shape: memory.Shape
    compute: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: Any) -> Here:
        if config.method == "pretrain":
            raise UserError("loops.pretrain makes its model and has no rows: nothing is estimated for it")
        name = config.model.name
        try:
            about = size.config_of(name, config.model.trust_remote_code)
            shape = memory.shape_of(about, config.model.lora if config.model.adapter == "lora" else None)
        except Exception as problem:
            raise UserError(
                f"model.name '{name}': its config cannot be read, so nothing can be estimated: {reason(problem)}"
            ) from None
        on_cpu = config.training.device == "cpu" or not torch.cuda.is_available()
        return cls(about, shape, compute_dtype(config.model, on_cpu), torch.device("cpu" if on_cpu else "cuda"))


# ---------------------------------------------------------------- memory


def memory_lines(config: Any, here: Here, shares: int = 1) -> list[str]:
    """shares: processes that FSDP2 spreads the models over."""
    shape = here.shape
    parts = memory.estimate(config, shape, here.compute.itemsize, shares)
    lines = [
        f"{shape.parameters:,} parameters, {shape.adapter or shape.parameters:,} trained, computing in "
        f"{str(here.compute).removeprefix('torch.')}; rows of up to {limit(config, shape):,} tokens, micro_batch_size "
        f"{config.training.micro_batch_size}"
    ]
    lines += [f"{_size(part):>10}  {name}" for name, part in parts.items()]
    whole = memory.total(parts)
    lines.append(
        f"{_size(whole):>10}  per process{' of ' * (shares > 1)}{shares if shares > 1 else ''}, and about 1 GiB for the libraries"
    )
    have = torch.cuda.get_device_properties(0).total_memory if here.device.type == "cuda" else None
    if have is not None and whole > 0.9 * have:
        lines.append(
            "too much for this GPU: lower micro_batch_size or data.max_length, set gradient_checkpointing, or adapter: lora (quantization: 4bit); "
            "or spread it over several GPUs (--fsdp2 N estimates that)"
        )
    return lines


def limit(config: Any, shape: memory.Shape) -> int:
    """Longest row, in tokens."""
    return config.data.max_length or min(1024, shape.longest)


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


# ---------------------------------------------------------------- time


@dataclass(frozen=True)
class Forecast:
    """Seconds of an optimiser step, part by part."""

    able: rates.Rates
    said: str  # of the rows
    parts: dict[str, float]  # of RL: with the longest answers
    steps: int | None  # of the whole run
    shorter: tuple[int, float] | None = None  # RL: with answers of so many tokens, seconds in all

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def time_lines(config: Any, here: Here) -> list[str]:
    problem = uncounted(config, here)
    if problem is not None:
        return [f"not estimated: {problem}"]
    found = foretell(config, here)
    lines = [_able(found.able), found.said, *(f"{_seconds(value):>10}  {name}" for name, value in found.parts.items())]
    lines.append(
        f"{_seconds(found.seconds):>10}  a step{_minutes(found.seconds, found.steps)} (beside it: loading, samples, evaluations)"
    )
    if found.shorter is not None:
        tokens, less = found.shorter
        lines.append(f"{_seconds(less):>10}  a step with answers of {tokens}{_minutes(less, found.steps)}")
    return lines


def foretell(config: Any, here: Here) -> Forecast:
    longest = limit(config, here.shape)
    data = typical.read(config, longest)
    return (_of_answers if config.method in typical.ROLLOUTS else _of_rows)(config, here, data, longest)


def _of_rows(config: Any, here: Here, data: typical.Read, longest: int) -> Forecast:
    windows, size_of_one = typical.windows_of(config, data.items, longest), here.compute.itemsize
    asked = round(config.distill.on_policy * config.training.batch_size) if config.method == "distill" else 0
    able = _measured(config, here, [micro for window in windows for micro in window], asked)
    teacher = _teacher(config)
    parts = _mean([duration.of_step(config, here.shape, window, size_of_one, teacher) for window in windows])
    spent = duration.seconds(parts, able, size_of_one)
    if asked:
        lengths = [row.prompt for micro in windows[0] for row in micro][:asked]
        cost = duration.of_rollout(config, here.shape, lengths, config.distill.max_new_tokens, size_of_one)
        spent = duration.seconds({"sampling (the longest answers)": cost}, able, size_of_one) | spent
    rows = [row for window in windows for micro in window for row in micro]
    tokens, learned = _average(row.tokens for row in rows), _average(row.learned for row in rows)
    said = f"{data.said}: {tokens:.0f} tokens in a row on average, {learned:.0f} of them learned"
    return Forecast(able, said, spent, typical.steps_of(config, data.count))


def _of_answers(config: Any, here: Here, data: typical.Read, longest: int) -> Forecast:
    """RL: nobody knows how long the answers will be."""
    rl, size_of_one = getattr(config, config.method), here.compute.itemsize
    asked = min(rl.prompts_per_step, data.count or rl.prompts_per_step)
    lengths = [len(item) for item in itertools.islice(itertools.cycle(data.items), asked)]
    able = _measured(config, here, typical.window_of_answers(config, lengths, rl.max_new_tokens), asked * rl.group_size)

    def spent(new: int) -> dict[str, float]:
        rollout = duration.of_rollout(config, here.shape, lengths, new, size_of_one)
        window = typical.window_of_answers(config, lengths, new)
        parts = duration.of_step(config, here.shape, window, size_of_one)
        return duration.seconds({"sampling": rollout} | parts, able, size_of_one)

    short = max(1, rl.max_new_tokens // 4)
    said = (
        f"{data.said}, of {_average(lengths):.0f} tokens on average; answers taken to have {rl.max_new_tokens} (max_new_tokens: "
        "more they cannot)"
    )
    shorter = (short, sum(spent(short).values()))
    return Forecast(able, said, spent(rl.max_new_tokens), typical.steps_of(config, data.count), shorter)


def _measured(config: Any, here: Here, micros: list, sampled: int) -> rates.Rates:
    tokens = _average(duration.laid_out(micro, typical.shares(config)).tokens for micro in micros)
    length = _average(row.tokens for micro in micros for row in micro)
    return rates.measure(here.shape, here.compute, here.device, round(tokens), round(length), sampled)


def _teacher(config: Any) -> memory.Shape | None:
    return memory.shape_of(size.config_of(config.distill.teacher)) if config.method == "distill" else None


def uncounted(config: Any, here: Here) -> str | None:
    """Why the work of this config cannot be counted, where it cannot."""
    text = here.about.get_text_config()
    if getattr(text, "num_experts_per_tok", None):
        return "of a mixture of experts a part alone works for each token"
    if not here.shape.queries:
        return "its layers are not attention"
    return None


# ---------------------------------------------------------------- in words


def _mean(found: list[dict[str, Cost]]) -> dict[str, Cost]:
    return {name: duration.total(parts[name] for parts in found) * (1 / len(found)) for name in found[0]}


def _average(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def _able(able: rates.Rates) -> str:
    few = f", {able.few / 1e9:,.0f} in those of a few rows" if able.few else ""
    return (
        f"measured here: {able.products / 1e9:,.0f} GFLOP/s in products of many tokens{few}, {able.attention / 1e9:,.0f} in attention; "
        f"{able.moved / 1e9:,.0f} GB/s in activations, {able.softmax / 1e9:,.1f} in a softmax over the vocabulary; {able.start * 1e6:.1f} µs to "
        "start an operation"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def _minutes(a_step: float, count: int | None) -> str:
    if count is None:
        return "; how many steps depends on the rows"
    whole = a_step * count
    took = f"{whole:.0f} s" if whole < 100 else f"{whole / 60:.0f} min" if whole < 6000 else f"{whole / 3600:.1f} h"
    return f", {count:,} step{'s' * (count != 1)}: {took}"
