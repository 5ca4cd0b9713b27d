"""On-policy distillation: a frozen teacher says how good each token was that the student sampled.

    A_t = log π_T(o_t | q, o_<t) − log π(o_t | q, o_<t)            o ~ π; both at the rollout's temperature, no gradient

Source: Thinking Machines Lab 2025, "On-Policy Distillation"; a teacher on the student's own answers: Agarwal et al.
2023 (GKD), arXiv 2306.13649. Kept: everything. It is an advantage, so any policy gradient takes it (losses/grpo.py,
cispo.py), and since there is no group to be compared with, one answer to a prompt is enough. A reward says one thing
of a whole answer; this says one of every token.

What it rests on: at a state (q, o_<t), held as it is,

    E_{o_t ~ π} [ A_t ∇ log π(o_t) ] = −∇ KL(π ‖ π_T)

for ∇ Σ π log(π/π_T) = Σ ∇π · log(π/π_T) + Σ ∇π, and Σ ∇π = ∇ 1 = 0. In expectation a step on its own samples is that
of `distillation_loss(mixture=1)` (losses/distill.py) on them, from one token instead of the whole vocabulary: noisier,
and the teacher has one number to give for each token. E[A_t] = −KL(π ‖ π_T), so the mean of −A_t says how far there is
to go; of a few tokens it may be negative (it is k1 of losses/kl.py).

A token is credited with its own term and with nothing that follows it. That is the KL *at the states that were
visited*, and not the gradient of the KL of whole answers, which would charge a token for where it leads, too.

The trap: at a temperature τ the tokens come from softmax(z/τ), and the teacher has to be asked at τ as well. A teacher
that is the student itself has nothing to teach, A = 0; asked at 1 it calls every likely token too likely.

>>> import torch
>>> student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()     # of two tokens, each
>>> advantages = teacher_advantages(teacher, student, torch.tensor([[True, True]]))
>>> [round(x, 6) for x in advantages[0].tolist()]                                             # log(.5/.9), log(.5/.1)
[-0.587787, 1.609438]
>>> round((student.exp() * advantages).sum().item(), 6)      # .9 · −.587787 + .1 · 1.609438 = −KL((.9, .1) ‖ (.5, .5))
-0.368064
"""

import torch
from torch import Tensor

from losses.door import at_least_float32, same_shape


def teacher_advantages(
    teacher_logps: Tensor,  # [B, T] log π_T of the sampled tokens, at the rollout's temperature
    student_logps: Tensor,  # [B, T] log π of the same tokens, before any update
    active: Tensor,  # [B, T] bool
) -> Tensor:
    """A [B, T]: by how much likelier the teacher finds each token, in nats; no gradient, 0 where inactive."""
    same_shape("B T", {"teacher_logps": teacher_logps, "student_logps": student_logps, "active": active})
    assert active.dtype == torch.bool, f"active must be bool, got {active.dtype}"
    log_ratio = at_least_float32(teacher_logps) - at_least_float32(student_logps)
    return torch.where(active, log_ratio, 0.0).detach()


def walk_through() -> None:
    """The docstring's example in plain Python floats."""
    import math

    from losses.walk import agree, show

    student, teacher = [0.9, 0.1], [0.5, 0.5]
    print("one state, a vocabulary of two: the student says (.9, .1), the teacher (.5, .5)\n")
    advantages = [math.log(t / s) for t, s in zip(teacher, student, strict=True)]
    expected = sum(s * a for s, a in zip(student, advantages, strict=True))
    show("A of each token", "log π_T − log π", advantages)
    of_teacher, of_student = (torch.tensor([p]).log() for p in (teacher, student))
    agree(advantages, teacher_advantages(of_teacher, of_student, torch.tensor([[True, True]]))[0].tolist())
    show("E[A]", "Σ π A = −KL(π ‖ π_T)", expected)
    # ∂/∂z_0 of Σ π A: each token's A times ∂ log π / ∂z_0, which is 1 − π_0 for token 0 and −π_0 for token 1
    pull = student[0] * advantages[0] * (1 - student[0]) - student[1] * advantages[1] * student[0]
    show("E[A ∂ log π/∂z_0]", "π_0 A_0 (1 − π_0) − π_1 A_1 π_0", pull)
    show("−∂KL/∂z_0", "π_0 (A_0 − E[A])", student[0] * (advantages[0] - expected))
    agree(pull, student[0] * (advantages[0] - expected))


if __name__ == "__main__":
    walk_through()
