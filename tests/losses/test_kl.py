"""The estimators are proved by enumeration: three actions, every expectation a sum of three terms."""

import math

import pytest
import torch

from losses.kl import adapted_coef, exact_kl, k1, k2, k3, k3_is, kl_metrics

THETA, REF = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.2, 0.3, 0.5])
# π = softmax(0, 1, −1) = [.244728, .665241, .090031];  KL(π‖ref) = Σ π log(π/ref) = .049392 + .529773 − .154348 = .424816


def one(value):
    return torch.tensor([[value]])


def test_pencil_values():
    # log r = −1.5 + 1 = −0.5: k1 = 0.5, k2 = 0.125, k3 = e^−0.5 − 1 + 0.5 = 0.606531 − 0.5 = 0.106531
    assert [k(one(-1.0), one(-1.5)).item() for k in (k1, k2, k3)] == pytest.approx([0.5, 0.125, 0.106531], abs=1e-6)
    # ρ = e^(−1 + 1.2) = 1.221403; ρ · k3 = 0.130117
    assert k3_is(one(-1.0), one(-1.5), one(-1.2)).item() == pytest.approx(0.130117, abs=1e-6)


def expectation(estimator):
    """E over y ~ π (frozen: the samples were drawn) of the estimator, and its gradient with respect to θ."""
    theta = THETA.double().clone().requires_grad_()
    logps = torch.log_softmax(theta, -1)[None]  # [1, 3]: one "token" per action
    probs = logps.detach().exp()
    value = (probs * estimator(logps, REF.double().log()[None], logps.detach())).sum()
    (gradient,) = torch.autograd.grad(value, theta)
    return value.item(), gradient.tolist()


def test_k1_and_k3_are_unbiased():
    assert expectation(lambda p, r, o: k1(p, r))[0] == pytest.approx(0.424816, abs=1e-6)
    assert expectation(lambda p, r, o: k3(p, r))[0] == pytest.approx(0.424816, abs=1e-6)
    assert expectation(k3_is)[0] == pytest.approx(0.424816, abs=1e-6)


def test_expected_gradients():
    forward = [-0.054571, 0.247171, -0.192600]  # ∇ KL(π‖ref)
    reverse = [0.044728, 0.365241, -0.409969]  # ∇ KL(ref‖π) = π − ref
    assert expectation(lambda p, r, o: k1(p, r))[1] == pytest.approx([0, 0, 0], abs=1e-12)
    assert expectation(lambda p, r, o: k2(p, r))[1] == pytest.approx(forward, abs=1e-6)
    assert expectation(k3_is)[1] == pytest.approx(forward, abs=1e-6)
    assert expectation(lambda p, r, o: k3(p, r))[1] == pytest.approx(reverse, abs=1e-6)


def test_off_policy_k3_is_still_estimates_the_kl():
    """Samples from an older policy: ρ · k3 keeps the expectation at KL(π‖ref); k3 alone does not."""
    logps, ref, old = torch.log_softmax(THETA, -1)[None], REF.log()[None], torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert (old.exp() * k3_is(logps, ref, old)).sum().item() == pytest.approx(0.424816, abs=1e-5)
    assert abs((old.exp() * k3(logps, ref)).sum().item() - 0.424816) > 0.1


def test_exact_kl():
    logits = THETA.expand(2, 4, 3)
    out = exact_kl(logits, REF.log().expand(2, 4, 3))
    assert out.shape == (2, 4)
    assert out.flatten().tolist() == pytest.approx([0.424816] * 8, abs=1e-6)


def test_exact_kl_gradient_is_that_of_the_forward_kl():
    theta = THETA.clone().requires_grad_()
    exact_kl(theta[None, None], REF.log()[None, None]).sum().backward()
    assert theta.grad.tolist() == pytest.approx([-0.054571, 0.247171, -0.192600], abs=1e-6)


def test_exact_kl_with_an_impossible_entry():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    out = exact_kl(logits, torch.tensor([[[0.0, math.log(3.0), -math.inf]]]))
    # ½ log(½ / ¼) + ½ log(½ / ¾) = ½ (0.693147 − 0.405465) = 0.143841
    assert out.item() == pytest.approx(0.143841, abs=1e-6)
    out.backward()
    assert torch.isfinite(logits.grad).all()


def test_k3_near_zero_does_not_cancel():
    # log r = −1e-4: k3 = 1e-8 / 2 − … = 5.0e-9; e^x − 1 − x in float32 would give 0 or noise of 1e-8
    assert k3(one(-1.0), one(-1.0001)).item() == pytest.approx(5.0e-9, rel=0.05)


def test_limits_and_the_reference_carries_no_gradient():
    x = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    ref = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    for value in (k1(x, ref), k2(x, ref), k3(x, ref), k3_is(x, ref, ref)):
        assert value.tolist() == [[0.0, 0.0]]
        value.sum().backward()
    assert ref.grad is None


def test_purity_dtype_and_refusals():
    x, ref = torch.tensor([[-1.0]], dtype=torch.bfloat16), torch.tensor([[-1.5]], dtype=torch.bfloat16)
    assert k3(x, ref).dtype == torch.float32 and x.item() == -1.0 and ref.item() == -1.5
    with pytest.raises(AssertionError, match="differ"):
        k1(torch.zeros(1, 2), torch.zeros(2, 1))
    with pytest.raises(AssertionError, match=r"\[B, S, V\]"):
        exact_kl(torch.zeros(2, 3), torch.zeros(2, 3))


def test_metrics_by_hand():
    # k3 = e^−.5 − 1 + .5 = .106531, k1 = .5; an inactive token has both 0
    logps, ref = torch.tensor([[-1.0, 0.0]], requires_grad=True), torch.tensor([[-1.5, 0.0]])
    metrics = kl_metrics(logps, ref, torch.tensor([[True, False]]))
    assert metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6) and metrics["kl_k1"][0].item() == 0.5
    assert all(count.item() == 1 and not total.requires_grad for total, count in metrics.values())


def test_the_adapted_coefficient_by_hand():
    # a tenth of the relative error: KL 11 for a target of 10 is 10 % too much, + 1 %; beyond ± 20 % it is ± 2 %
    assert adapted_coef(0.5, 11.0, 10.0) == pytest.approx(0.505)
    assert adapted_coef(0.5, 99.0, 10.0) == pytest.approx(0.51) and adapted_coef(0.5, 0.0, 10.0) == pytest.approx(0.49)
