"""What one optimiser step has said of itself: losses, terms and metrics of its micro-batches, added up, then over the
processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.run import processes


class Meter:
    """Losses and their terms are sums already (their weights carry the division); metrics are (sum, count) pairs."""

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        self._terms: dict[str, list[Tensor]] = {}  # "loss" among them
        self._metrics: dict[str, list[Tensor]] = {}
        self._tokens = 0

    def add(self, terms: dict[str, Tensor], metrics: dict[str, tuple[Any, Any]], tokens: int = 0) -> None:
        for name, value in terms.items():
            self._terms.setdefault(name, []).append(value.detach())
        for name, pair in metrics.items():
            both = [torch.as_tensor(x, dtype=torch.float32, device=self.device).detach() for x in pair]
            self._metrics.setdefault(name, []).append(torch.stack(both))
        self._tokens += tokens

    def term(self, name: str) -> Tensor:
        """What a term has come to so far, in this process."""
        return sum(self._terms.get(name, []), torch.zeros((), device=self.device))

    def term_of_all(self, name: str) -> float:
        return processes.add_up(self.term(name).item(), self.device)

    def count_of_all(self, name: str) -> float:
        """The count of a metric so far, over all processes."""
        return processes.add_up(sum(float(count) for _, count in self._metrics.get(name, [])), self.device)

    def row(self, accelerator) -> tuple[dict[str, float], float]:
        """({name: value} of the whole step over all processes, tokens), and everything back to 0."""
        terms, metrics = sorted(self._terms), sorted(self._metrics)
        flat = [self.term(name) for name in terms]
        flat += [x for name in metrics for x in torch.stack(self._metrics[name]).sum(0)]
        flat.append(torch.tensor(float(self._tokens), device=self.device))
        values = accelerator.reduce(torch.stack(flat), "sum").tolist()
        row = dict(zip(terms, values, strict=False))
        row = {"loss": row.pop("loss")} | row
        pairs = values[len(terms) : -1]
        row |= {n: pairs[2 * i] / pairs[2 * i + 1] for i, n in enumerate(metrics) if pairs[2 * i + 1]}
        self.clear()
        return row, values[-1]
