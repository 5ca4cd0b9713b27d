"""The door that all losses share: shapes that must agree, what counts and what does not, the type of the metrics.

Inactive means a weight of exactly 0. Such positions (and pairs) are replaced by 0 *before* any arithmetic, because
padding may hold NaN or −inf, and 0 · NaN is NaN, in the loss and in its gradient.
"""

import torch
from torch import Tensor

Metrics = dict[
    str, tuple[Tensor, Tensor]
]  # name -> (sum, count), detached: they add up over micro-batches and processes


def at_least_float32(x: Tensor) -> Tensor:
    """Log-probs and losses are float32 whatever the model computes in; float64 stays, for finite differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def same_shape(axes: str, tensors: dict[str, Tensor | None]) -> None:
    """same_shape("B T", {"logps": …, "weights": …}): all have two axes and one shape (None is left out)."""
    shapes = {name: list(x.shape) for name, x in tensors.items() if x is not None}
    first = next(iter(shapes.values()))
    assert len(first) == len(axes.split()) and all(shape == first for shape in shapes.values()), (
        f"expected the same shape [{axes.replace(' ', ', ')}], got {', '.join(f'{n} {s}' for n, s in shapes.items())}"
    )


def what_counts(weights: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """-> (active, weights, *tensors): where the weight is not 0, the weights without gradient, the tensors in float32
    and 0 where inactive. weights None: the plain mean over the rows of the first tensor."""
    if weights is None:
        weights = torch.full_like(at_least_float32(tensors[0]), 1 / max(len(tensors[0]), 1))
    weights = weights.detach()
    active = weights != 0
    return active, weights, *(torch.where(active, at_least_float32(x), 0.0) for x in tensors)


def refuse_negative(name: str, value: float, why: str = "") -> None:
    if value < 0:
        raise ValueError(f"{name} must not be negative{why}, got {value}")
