"""The loss of losses/distill.py, a few positions at a time: the student's logits [B, S, V] never exist.

    Σ w · D(T, S)        S = softmax(W h + b) of `chunk_size` positions, then of the next ones

A batch of 8 × 1,024 tokens and 152,000 entries is 5 GB of float32 logits, and distillation wants several such tensors.
Here the head runs only where a position counts; and since the loss is one number, a chunk's gradient can be taken at
once, in the forward pass, and its logits thrown away: the backward pass has nothing left but to scale. Same value, same
gradient (tests/losses/test_distill_chunked.py). The teacher's logits carry none and stay in their own type.

>>> import torch
>>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
>>> head = torch.eye(2)                                                  # so that the hidden state is the logits
>>> round(chunked_distillation_loss(student, head, teacher, torch.ones(1), mixture=0.5)[0].item(), 6)
0.101749
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from losses.distill import generalised_divergence, refuse_mixture_and_temperature
from losses.door import Metrics, at_least_float32


def chunked_distillation_loss(
    hidden: Tensor,  # [N, H] the student's last hidden states at the N positions that count
    head_weight: Tensor,  # [V, H]
    teacher_logits: Tensor,  # [N, V] at the same positions, no gradient
    weights: Tensor,  # [N]
    *,
    head_bias: Tensor | None = None,  # [V]
    mixture: float = 0.5,  # β
    temperature: float = 1.0,  # τ
    chunk_size: int = 1024,  # positions whose logits are held at once
) -> tuple[Tensor, Metrics]:
    """Σ w · D(T, S) -> (loss [], metrics), as losses.distill.distillation_loss."""
    rows, width = len(hidden), len(head_weight)
    fits = hidden.ndim == 2 and teacher_logits.shape == (rows, width) and weights.shape == (rows,)
    assert fits, f"hidden [{rows}, H] wants teacher_logits [{rows}, {width}] and weights [{rows}]"
    refuse_mixture_and_temperature(mixture, temperature)
    if torch.is_autocast_enabled(hidden.device.type):  # what F.linear would do; inside a Function it must be said
        compute = torch.get_autocast_dtype(hidden.device.type)
        hidden, head_weight = hidden.to(compute), head_weight.to(compute)
        head_bias = None if head_bias is None else head_bias.to(compute)
    loss, divergence = _ChunkedDivergence.apply(
        hidden, head_weight, head_bias, teacher_logits, weights, mixture, temperature, chunk_size
    )
    return loss, {"divergence": (divergence, (weights != 0).sum())}


class _ChunkedDivergence(torch.autograd.Function):
    """(the loss, Σ D) where the weight is not 0; the gradients of states, weight and bias are taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Tensor,
        weights: Tensor,
        mixture: float,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        grad_states = torch.zeros_like(states)
        grad_weight = at_least_float32(torch.zeros_like(weight)) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None or not ctx.needs_input_grad[2] else at_least_float32(torch.zeros_like(bias))
        loss, divergence = at_least_float32(states.new_zeros(2))
        for where in (weights != 0).nonzero().squeeze(-1).split(chunk_size):  # [n] which positions
            h, t = states[where], teacher[where]
            with torch.enable_grad():
                logits = linear(h, weight, bias).detach().requires_grad_()  # [n, V]
                d = generalised_divergence(logits, t, mixture, temperature)  # [n]
                part = (weights[where] * d).sum()
                (grad,) = torch.autograd.grad(part, logits)
            loss, divergence = loss + part.detach(), divergence + d.detach().sum()
            grad_states[where] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ h
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(divergence)
        return loss, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = (None if g is None else g * grad_loss for g in ctx.saved_tensors)
        weight = None if weight is None else weight.to(ctx.dtypes[0])
        bias = None if bias is None else bias.to(ctx.dtypes[1])
        return states, weight, bias, None, None, None, None, None


def walk_through() -> None:
    """Two positions, one at a time, against plain Python floats."""
    import math

    from losses.walk import agree, show

    teacher, student, weights = [[0.5, 0.5], [0.9, 0.1]], [[0.9, 0.1], [0.5, 0.5]], [0.5, 0.25]
    print("two positions, one at a time, β = 1: D = KL(S‖T); the weights are 1/2 and 1/4\n")
    each = [sum(s * math.log(s / t) for s, t in zip(*both, strict=True)) for both in zip(student, teacher, strict=True)]
    loss = sum(w * d for w, d in zip(weights, each, strict=True))
    show("D", "Σ_v S log(S / T)", each)
    show("w", "1/2, 1/4", weights)
    show("loss", "Σ w · D", loss)
    s, t, w = (torch.tensor(x, dtype=torch.float64) for x in (student, teacher, weights))
    agree(
        loss, chunked_distillation_loss(s.log(), torch.eye(2).double(), t.log(), w, mixture=1, chunk_size=1)[0].item()
    )


if __name__ == "__main__":
    walk_through()
