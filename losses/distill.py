"""Distillation: the student's distribution is drawn to the teacher's, at every position of an answer.

    D(T, S) = β KL(T‖M) + (1 − β) KL(S‖M)      M = β T + (1 − β) S      0 < β < 1
    β = 0:  D = KL(T‖S), the student covers all that the teacher may say
    β = 1:  D = KL(S‖T), the student says only what the teacher would

Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, eq. 1, the generalised Jensen-Shannon divergence. Kept: everything,
the ends as the limits that they define. Changed: weights in place of the mean.

It *jumps* at the ends: D(β) / β goes to KL(T‖S) as β → 0, so D itself goes to 0, while β = 0 means KL(T‖S) whole. From
β = 0 to 0.1 the loss, and with it the gradient, falls to about a tenth: another learning rate, not another mixture.

The temperature divides both logits. There is no factor τ² here (Hinton et al. 2015, arXiv 1503.02531, multiply by it to
keep the gradient's size): the loss is the divergence itself. On whose answers? Given ones, or the student's own, which
is what GKD is about (loops/distill.py). On its own answers the expected gradient of β = 1 at a position is that of the
policy gradient with the advantage log T − log S of the sampled token ("on-policy distillation", Thinking Machines
2025), summed over the whole vocabulary instead of one draw.

>>> import torch
>>> T, S = torch.tensor([[[0.5, 0.5], [9.0, 1.0]]]).log(), torch.tensor([[[0.9, 0.1], [1.0, 1.0]]]).log()
>>> [round(distillation_loss(S, T, torch.ones(1, 1), mixture=b)[0].item(), 6) for b in (0, 0.1, 0.5, 1)]
[0.510826, 0.043074, 0.101749, 0.368064]
"""

import math

import torch
from torch import Tensor

from losses.door import Metrics, at_least_float32, same_shape


def distillation_loss(
    student_logits: Tensor,  # [B, S, V]
    teacher_logits: Tensor,  # [B, S, V] of the same vocabulary, no gradient
    weights: Tensor,  # [B, T] exactly 0 where there is nothing to learn; position t is about token t + 1
    *,
    mixture: float = 0.5,  # β
    temperature: float = 1.0,  # τ
) -> tuple[Tensor, Metrics]:
    """Σ w · D(T, S) -> (loss [], metrics). metrics: divergence, D as (sum, count) over the positions that count."""
    same_shape("B S V", {"student_logits": student_logits, "teacher_logits": teacher_logits})
    same_shape("B T", {"weights": weights, "predictions": student_logits[:, :-1, 0]})
    refuse_mixture_and_temperature(mixture, temperature)
    active, weights = weights != 0, weights.detach()
    student, teacher = student_logits[:, :-1][active], teacher_logits[:, :-1][active].detach()  # [N, V]
    divergence = generalised_divergence(student, teacher, mixture, temperature)  # [N]
    loss = (weights[active] * divergence).sum()
    return loss, {"divergence": (divergence.detach().sum(), active.sum())}


def generalised_divergence(student: Tensor, teacher: Tensor, mixture: float, temperature: float) -> Tensor:
    """D(T, S) of logits [N, V] and [N, V] -> [N], in nats, float32."""
    s, t = (_log_softmax(at_least_float32(logits) / temperature) for logits in (student, teacher))
    if mixture == 0:
        return _kl(t, s)
    if mixture == 1:
        return _kl(s, t)
    m = torch.logaddexp(t + math.log(mixture), s + math.log(1 - mixture))
    return mixture * _kl(t, m) + (1 - mixture) * _kl(s, m)


def refuse_mixture_and_temperature(mixture: float, temperature: float) -> None:
    if not 0 <= mixture <= 1:
        raise ValueError(f"mixture must lie in 0 … 1 (0: KL(teacher‖student), 1: KL(student‖teacher)), got {mixture}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _log_softmax(logits: Tensor) -> Tensor:
    # An entry that a model masks out has log p = −inf and p = 0; 0 · (−inf) would be NaN, the limit is 0.
    return torch.log_softmax(logits, dim=-1).clamp_min(torch.finfo(logits.dtype).min)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    from losses.walk import agree, show

    teacher, student = [0.5, 0.5], [0.9, 0.1]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    print("one position, a vocabulary of two: the teacher says (.5, .5), the student (.9, .1)\n")
    of_student, of_teacher = (torch.tensor([[p, [0.5, 0.5]]]).log() for p in (student, teacher))
    for beta in (0.0, 0.1, 0.5, 1.0):
        mixed = [beta * t + (1 - beta) * s for t, s in zip(teacher, student, strict=True)]
        inside = beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)
        value = {0.0: kl(teacher, student), 1.0: kl(student, teacher)}.get(beta, inside)
        formula = {0.0: "KL(T‖S)", 1.0: "KL(S‖T)"}.get(beta, "β KL(T‖M) + (1 − β) KL(S‖M)")
        show(f"β = {beta}: M", "β T + (1 − β) S", mixed)
        show("  D", formula, value)
        agree(value, distillation_loss(of_student, of_teacher, torch.ones(1, 1), mixture=beta)[0].item())


if __name__ == "__main__":
    walk_through()
