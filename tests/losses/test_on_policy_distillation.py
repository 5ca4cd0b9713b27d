import itertools
import math

import pytest
import torch

from losses.distill import distillation_loss
from losses.grpo import grpo_loss
from losses.logprobs import token_logps
from losses.on_policy_distillation import teacher_advantages

ON = torch.ones(1, 2, dtype=torch.bool)


def test_pencil_values():
    # log(.5/.9) = −.587787, log(.5/.1) = 1.609438; .9 · −.587787 + .1 · 1.609438 = −.368064
    student, teacher = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    advantages = teacher_advantages(teacher.log(), student.log(), ON)
    assert advantages[0].tolist() == pytest.approx([-0.587787, 1.609438], abs=1e-6)
    assert (student * advantages).sum().item() == pytest.approx(-0.368064, abs=1e-6)


def test_a_teacher_that_is_the_student_has_nothing_to_teach():
    logps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert teacher_advantages(logps, logps, torch.ones(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


# ---------------------------------------------------------------- the identity, by enumeration

VOCABULARY, TEMPERATURE = 3, 0.7


class Tables:
    """A model of two tokens over a vocabulary of three: logits of the first, and of the second behind each first."""

    def __init__(self, seed: int):
        g = torch.Generator().manual_seed(seed)
        self.first = torch.randn(VOCABULARY, generator=g, dtype=torch.float64, requires_grad=True)
        self.second = torch.randn(VOCABULARY, VOCABULARY, generator=g, dtype=torch.float64, requires_grad=True)

    def logits(self, answers):
        """[9, 3, V]: behind the prompt, behind the first token, and one that scores nothing."""
        first = self.first.expand(len(answers), -1)
        return torch.stack([first, self.second[answers[:, 0]], torch.zeros_like(first)], dim=1)

    def gradient(self, loss):
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss, (self.first, self.second))])


@pytest.fixture
def enumerated():
    """All nine answers, the student, the teacher, and how likely the student is to say each (no gradient)."""
    student, teacher = Tables(0), Tables(1)
    answers = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=2)))
    ids = torch.cat([torch.zeros(9, 1, dtype=torch.long), answers], dim=1)  # behind a prompt of one token
    probability = token_logps(student.logits(answers), ids, temperature=TEMPERATURE).sum(1).exp().detach()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    return student, teacher, answers, ids, probability


def expected_gradient(enumerated, *, asked_at=TEMPERATURE):
    """Σ over the answers of π(o) · the gradient of GRPO's loss with the teacher's advantages, every token with weight
    1."""
    student, teacher, answers, ids, probability = enumerated
    logps = token_logps(student.logits(answers), ids, temperature=TEMPERATURE)
    of_teacher = token_logps(teacher.logits(answers), ids, temperature=asked_at)
    advantages = teacher_advantages(of_teacher, logps, torch.ones(9, 2, dtype=torch.bool))
    weights = probability[:, None].expand(9, 2)
    loss, _ = grpo_loss(logps, logps.detach(), advantages, weights)
    return student.gradient(loss)


def test_its_expected_gradient_is_that_of_the_reverse_kl_at_the_states_that_were_visited(enumerated):
    student, teacher, answers, _, probability = enumerated
    loss, _ = distillation_loss(
        student.logits(answers), teacher.logits(answers), probability[:, None].expand(9, 2),
        mixture=1, temperature=TEMPERATURE,
    )  # fmt: skip
    by_vocabulary = student.gradient(loss)
    assert by_vocabulary.abs().max() > 0.05
    torch.testing.assert_close(expected_gradient(enumerated), by_vocabulary, atol=1e-12, rtol=0)


def test_it_is_not_the_gradient_of_the_kl_of_whole_answers(enumerated):
    """Which also charges the first token for where it leads: only the second token has nothing behind it."""
    student, teacher, answers, ids, probability = enumerated
    both = (token_logps(model.logits(answers), ids, temperature=TEMPERATURE) for model in (student, teacher))
    logps, of_teacher = (of_tokens.sum(1) for of_tokens in both)
    assert torch.equal(logps.exp().detach(), probability)
    whole = student.gradient((logps.exp() * (logps - of_teacher)).sum())
    ours = expected_gradient(enumerated)
    torch.testing.assert_close(ours[VOCABULARY:], whole[VOCABULARY:], atol=1e-12, rtol=0)
    assert (ours[:VOCABULARY] - whole[:VOCABULARY]).abs().max() > 0.01


def test_a_teacher_asked_at_another_temperature_is_another_teacher(enumerated):
    right, wrong = expected_gradient(enumerated), expected_gradient(enumerated, asked_at=1.0)
    assert (right - wrong).abs().max() > 0.05


# ---------------------------------------------------------------- what every function owes its caller


def test_garbage_where_inactive():
    active = torch.tensor([[True, False]])
    for garbage in (math.nan, math.inf, -math.inf):
        teacher, student = torch.tensor([[-1.0, garbage]]), torch.tensor([[-3.0, garbage]])
        assert teacher_advantages(teacher, student, active).tolist() == [[2.0, 0.0]]


def test_purity_dtype_and_no_gradient():
    teacher, student = (torch.tensor([[x, x]], requires_grad=True) for x in (-1.0, -3.0))
    out = teacher_advantages(teacher, student, ON)
    assert not out.requires_grad and teacher.tolist() == [[-1.0] * 2] and student.tolist() == [[-3.0] * 2]
    half = teacher_advantages(teacher.bfloat16(), student.bfloat16(), ON)
    assert half.dtype == torch.float32 and half.tolist() == [[2.0, 2.0]]
    # bf16 has a spacing of 1/16 above 8: the difference is taken in float32, −8.0625 + 9 = 0.9375, and −9 + 0.0078125
    teacher, student = (torch.tensor([x]).bfloat16() for x in ([-8.0625, -9.0], [-9.0, -0.0078125]))
    fine = teacher_advantages(teacher, student, ON)
    assert fine.tolist() == [[0.9375, -8.9921875]]


def test_refusals():
    logps = torch.zeros(1, 2)
    with pytest.raises(AssertionError, match=r"same shape \[B, T\]"):
        teacher_advantages(logps, torch.zeros(1, 3), ON)
    with pytest.raises(AssertionError, match=r"same shape \[B, T\]"):
        teacher_advantages(logps[0], logps[0], ON[0])
    with pytest.raises(AssertionError, match="active must be bool"):
        teacher_advantages(logps, logps, torch.ones(1, 2))
