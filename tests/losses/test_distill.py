import math

import pytest
import torch

from losses.distill import distillation_loss, generalised_divergence

ONE = torch.ones(1, 1)


def at(*probs, grad=False, dtype=torch.float32):
    """[1, S, V] logits of S distributions, the last of which is dropped."""
    return torch.tensor([[*probs, [1.0] * len(probs[0])]], dtype=dtype).log().requires_grad_(grad)


# T = (.5, .5), S = (.9, .1).  KL(T‖S) = .5 log(.5/.9) + .5 log(.5/.1) = .510826;  KL(S‖T) = .9 log 1.8 + .1 log .2 = .368064
# β = .5: M = (.7, .3): .5 (.5 log(5/7) + .5 log(5/3)) + .5 (.9 log(9/7) + .1 log(1/3)) = .5 · .087177 + .5 · .116322 = .101749
# β = .1: M = (.86, .14): .1 (.5 log(.5/.86) + .5 log(.5/.14)) + .9 (.9 log(.9/.86) + .1 log(.1/.14)) = .1 · .365330 + .9 · .007269 = .043075
@pytest.mark.parametrize(("mixture", "value"), [(0, 0.510826), (1, 0.368064), (0.5, 0.101749), (0.1, 0.043074)])
def test_pencil_values(mixture, value):
    loss, metrics = distillation_loss(at([0.9, 0.1]), at([0.5, 0.5]), ONE, mixture=mixture)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert [float(x) for x in metrics["divergence"]] == [pytest.approx(value, abs=1e-6), 1]


def test_the_default_is_a_half():
    assert distillation_loss(at([0.9, 0.1]), at([0.5, 0.5]), ONE)[0].item() == pytest.approx(0.101749, abs=1e-6)


@pytest.mark.parametrize(
    ("mixture", "gradient"),
    [
        (0, 0.4),  # d KL(T‖S) / d z_0 = S_0 − T_0 = .9 − .5
        (1, 0.197750),  # S_0 (log(S_0/T_0) − KL) = .9 · (.587787 − .368064)
    ],
)
def test_pencil_gradients_and_none_for_the_teacher(mixture, gradient):
    student, teacher = at([0.9, 0.1], grad=True), at([0.5, 0.5], grad=True)
    distillation_loss(student, teacher, ONE, mixture=mixture)[0].backward()
    assert student.grad[0, 0].tolist() == pytest.approx([gradient, -gradient], abs=1e-5)
    assert student.grad[0, 1].tolist() == [0, 0] and teacher.grad is None


def test_the_policy_gradient_with_the_teachers_log_ratio_is_the_gradient_of_the_reverse_kl():
    """On-policy distillation: Σ_a π(a) · −A_a ∇log π(a), A_a = log T − log π without gradient, over three actions."""
    theta, teacher = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True), [0.2, 0.3, 0.5]
    logp = torch.log_softmax(theta, 0)
    advantage = (torch.tensor(teacher, dtype=torch.float64).log() - logp).detach()
    (by_sampling,) = torch.autograd.grad((logp.detach().exp() * -advantage * logp).sum(), theta)
    logits = torch.stack([theta, theta])[None]
    whole = at(teacher, dtype=torch.float64)
    (whole_vocabulary,) = torch.autograd.grad(distillation_loss(logits, whole, ONE.double(), mixture=1)[0], theta)
    # ∇KL(π‖ref) of the trust list: [−.054571, .247171, −.192600]
    assert whole_vocabulary.tolist() == pytest.approx([-0.054571, 0.247171, -0.192600], abs=1e-6)
    assert by_sampling.tolist() == pytest.approx(whole_vocabulary.tolist(), abs=1e-12)


@pytest.mark.parametrize("mixture", [0.3, 0.7])
def test_the_gradient_inside_is_that_of_finite_differences(mixture):
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda s: generalised_divergence(s, teacher, mixture, 0.7), student.requires_grad_()
    )


def test_the_temperature_divides_both_and_nothing_is_multiplied():
    # τ = 2: T = (.5, .5), S ∝ (√.9, √.1) = (.75, .25): KL(T‖S) = .5 log(2/3) + .5 log 2 = .143841
    loss, _ = distillation_loss(at([0.9, 0.1]), at([0.5, 0.5]), ONE, mixture=0, temperature=2.0)
    assert loss.item() == pytest.approx(0.143841, abs=1e-6)
    # T ∝ (√.9, √.1), S = (.5, .5): KL(T‖S) = .75 log 1.5 + .25 log .5 = .130812
    loss, _ = distillation_loss(at([0.5, 0.5]), at([0.9, 0.1]), ONE, mixture=0, temperature=2.0)
    assert loss.item() == pytest.approx(0.130812, abs=1e-6)


def test_it_jumps_at_both_ends():
    """Just inside, D is mixture · KL(T‖S) or (1 − mixture) · KL(S‖T): next to nothing."""
    s, t = at([0.9, 0.1], dtype=torch.float64), at([0.5, 0.5], dtype=torch.float64)
    inside = [distillation_loss(s, t, ONE.double(), mixture=m)[0].item() for m in (1e-4, 1 - 1e-4)]
    assert [x * 1e4 for x in inside] == pytest.approx([0.510826, 0.368064], abs=1e-3)


@pytest.mark.parametrize("mixture", [0, 0.3, 1])
def test_split_invariance(mixture):
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, 7, generator=g) for _ in range(2))
    weights = torch.rand(3, 4, generator=g) * (torch.rand(3, 4, generator=g) > 0.3)
    whole, m = distillation_loss(student, teacher, weights, mixture=mixture)
    parts = [distillation_loss(student[s], teacher[s], weights[s], mixture=mixture) for s in (slice(0, 1), slice(1, 3))]
    assert sum(p[0] for p in parts).item() == pytest.approx(whole.item(), abs=1e-6)
    assert sum(p[1]["divergence"][0] for p in parts).item() == pytest.approx(m["divergence"][0].item(), abs=1e-5)
    assert sum(p[1]["divergence"][1] for p in parts).item() == m["divergence"][1].item() == (weights != 0).sum()


@pytest.mark.parametrize("mixture", [0, 0.3, 1])
def test_garbage_where_nothing_counts_and_at_the_last_position(mixture):
    for garbage in (math.nan, math.inf, -math.inf):
        student = torch.tensor([[[0.9, 0.1], [1.0, 1.0], [1.0, 1.0]]]).log()
        student[0, 1:] = garbage
        student.requires_grad_()
        loss, metrics = distillation_loss(student, student.detach(), torch.tensor([[0.5, 0.0]]), mixture=mixture)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6) and metrics["divergence"][1].item() == 1
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("mixture", [0, 0.5, 1])
def test_an_entry_that_both_mask_out_is_left_out(mixture):
    """A vocabulary of three whose last entry both give no chance: as the vocabulary of two; finite gradients."""
    student, teacher = at([0.9, 0.1, 0.0], grad=True), at([0.5, 0.5, 0.0])
    loss, _ = distillation_loss(student, teacher, ONE, mixture=mixture)
    assert loss.item() == pytest.approx({0: 0.510826, 0.5: 0.101749, 1: 0.368064}[mixture], abs=1e-6)
    (grad,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(grad).all() and grad[0, 0, 2] == 0


def test_nothing_counts():
    student = at([0.9, 0.1], grad=True)
    loss, metrics = distillation_loss(student, at([0.5, 0.5]), torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().sum() == 0 and metrics["divergence"][1].item() == 0


def test_purity_and_dtype():
    student, teacher = (x.bfloat16() for x in (at([0.9, 0.1]), at([0.5, 0.5])))
    before = student.clone(), teacher.clone()
    weights = ONE.clone().requires_grad_()
    loss, metrics = distillation_loss(student.requires_grad_(), teacher, weights)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.equal(student, before[0]) and torch.equal(teacher, before[1])
    assert weights.grad is None and not metrics["divergence"][0].requires_grad


@pytest.mark.parametrize("mixture", [0, 0.3, 1])
def test_equal_distributions_are_0(mixture):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, _ = distillation_loss(
        logits, logits.detach() + 3.0, torch.ones(2, 2), mixture=mixture
    )  # a shift of logits is none
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5) and logits.grad.abs().max() < 1e-6


def test_refusals():
    a = torch.zeros(1, 2, 3)
    with pytest.raises(AssertionError, match=r"same shape \[B, S, V\]"):
        distillation_loss(a, torch.zeros(1, 2, 4), ONE)
    with pytest.raises(AssertionError, match=r"same shape \[B, T\]"):
        distillation_loss(a, a, torch.ones(1, 2))
    for mixture in (-0.1, 1.1):
        with pytest.raises(ValueError, match="mixture must lie in 0 … 1"):
            distillation_loss(a, a, ONE, mixture=mixture)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distillation_loss(a, a, ONE, temperature=0)
