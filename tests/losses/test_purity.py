"""What every loss owes its caller, in one table: gradients flow where they are meant to and nowhere else, metrics carry none,
inactive entries may hold anything, and nothing that was given is changed."""

import math

import pytest
import torch

from losses.advantages import gae, kl_shaped_rewards, whiten
from losses.apo import apo_down_loss, apo_zero_loss
from losses.cispo import cispo_loss
from losses.dpo import dpo_loss
from losses.dpop import dpop_loss
from losses.grpo import grpo_loss
from losses.ipo import ipo_loss
from losses.kl import exact_kl, k1, k2, k3, k3_is
from losses.kto import kto_loss
from losses.orpo import orpo_loss
from losses.ppo import ppo_policy_loss, ppo_value_loss
from losses.reward import bradley_terry_loss, outcome_loss
from losses.robust_dpo import robust_dpo_loss
from losses.sft import completion_cross_entropy, dft_loss
from losses.simpo import simpo_loss


def judged(policy, ref, labels, **more):
    """KTO with labels that are numbers, as the table has them."""
    return kto_loss(policy, ref, labels > 0.5, 0.1, **more)


def odds(chosen, rejected, **more):
    """ORPO with log-probs, which are below 0."""
    return orpo_loss(chosen - 2, rejected - 2, **more)


# name: (function, shape, how many of its first arguments are trained, how many tensors it takes before the weights, more by keyword)
PER_TOKEN = {
    "sft": (completion_cross_entropy, (2, 3), 1, 1, {}),
    "dft": (dft_loss, (2, 3), 1, 1, {}),
    "grpo": (grpo_loss, (2, 3), 1, 3, {}),
    "cispo": (cispo_loss, (2, 3), 1, 3, {}),
    "ppo policy": (ppo_policy_loss, (2, 3), 1, 3, {}),
    "ppo value": (ppo_value_loss, (2, 3), 1, 3, {}),
}
PER_ROW = {
    "dpo": (dpo_loss, (4,), 2, 4, {"beta": 0.5, "label_smoothing": 0.1}),
    "ipo": (ipo_loss, (4,), 2, 4, {"beta": 0.5}),
    "robust": (robust_dpo_loss, (4,), 2, 4, {"beta": 0.5, "label_smoothing": 0.1}),
    "dpop": (dpop_loss, (4,), 2, 4, {"beta": 0.5, "penalty": 2.0}),
    "apo zero": (apo_zero_loss, (4,), 2, 4, {"beta": 0.5}),
    "apo down": (apo_down_loss, (4,), 2, 4, {"beta": 0.5}),
    "simpo": (simpo_loss, (4,), 2, 2, {}),
    "orpo": (odds, (4,), 2, 2, {}),
    "kto": (judged, (4,), 1, 3, {"undesirable_weight": 2.0}),
    "preference": (bradley_terry_loss, (4,), 2, 2, {"center_coef": 0.1}),
    "outcome": (outcome_loss, (4,), 1, 2, {}),
}
LOSSES = PER_TOKEN | PER_ROW


def given(name, seed=0):
    function, shape, trained, count, more = LOSSES[name]
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.rand(shape, generator=generator).requires_grad_() for _ in range(count)]
    weights = torch.rand(shape, generator=generator) + 0.1
    weights[-1] = 0  # the last row does not count
    return function, tensors, trained, weights, more


def call(name, function, tensors, weights, more):
    return function(*tensors, weights=weights, **more) if name in PER_ROW else function(*tensors, weights, **more)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_where_they_are_meant_to_and_nowhere_else(name):
    function, tensors, trained, weights, more = given(name)
    weights.requires_grad_()
    loss, metrics = call(name, function, tensors, weights, more)
    assert loss.ndim == 0 and loss.requires_grad
    assert not any(getattr(x, "requires_grad", False) for pair in metrics.values() for x in pair)
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in tensors[:trained])
    assert all(x.grad is None for x in tensors[trained:]) and weights.grad is None


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_may_hold_anything(name, garbage):
    """Loss, gradients and metrics are those of the rows that count, alone."""
    function, tensors, trained, weights, more = given(name)
    dirty = [x.detach().clone() for x in tensors]
    for x in dirty:
        x[-1] = garbage
    dirty = [x.requires_grad_() for x in dirty]
    alone = [x.detach()[:-1].clone().requires_grad_() for x in tensors]
    results = []
    for xs, w in ((dirty, weights), (alone, weights[:-1])):
        loss, metrics = call(name, function, xs, w, more)
        loss.backward()
        results.append((loss.item(), metrics, [x.grad for x in xs[:trained]]))
    (loss, metrics, grads), (expected, of_alone, grads_alone) = results
    assert loss == pytest.approx(expected, rel=1e-6)
    for grad, other in zip(grads, grads_alone, strict=True):
        torch.testing.assert_close(grad[:-1], other)
        assert (grad[-1] == 0).all()
    for key, (total, count) in metrics.items():
        assert float(count) == float(of_alone[key][1]), key
        assert float(total) == pytest.approx(float(of_alone[key][0]), rel=1e-6), key


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_given_is_changed(name):
    function, tensors, _, weights, more = given(name)
    before = [x.detach().clone() for x in (*tensors, weights)]
    call(name, function, tensors, weights, more)
    for x, y in zip((*tensors, weights), before, strict=True):
        assert torch.equal(x.detach(), y)


def test_an_outcome_that_does_not_count_is_no_hit():
    """Score 1 for a right answer: a hit. The row that is left out is set to score 0 and label 0, which would be one as well."""
    _, metrics = outcome_loss(torch.tensor([1.0, -5.0]), torch.tensor([1.0, 0.0]), weights=torch.tensor([1.0, 0.0]))
    assert [float(x) for x in metrics["accuracy"]] == [1.0, 1.0]


def test_a_margin_and_a_reference_are_constants():
    scores, margin = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    bradley_terry_loss(scores, scores.detach(), margin=margin)[0].backward()
    assert margin.grad is None
    logits, ref = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    exact_kl(logits, ref).sum().backward()
    assert ref.grad is None and logits.grad.abs().sum() > 0
    for estimate in (k1, k2, k3, lambda x, y: k3_is(x, y, y)):
        x, y = torch.full((1, 2), -1.0, requires_grad=True), torch.full((1, 2), -2.0, requires_grad=True)
        estimate(x, y).sum().backward()
        assert y.grad is None and x.grad.abs().sum() > 0


def test_advantages_are_constants_and_equal_ones_whiten_to_0():
    ones, active = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)
    scores = torch.ones(2, requires_grad=True)
    assert not kl_shaped_rewards(scores, ones, 2 * ones, active, 0.1).requires_grad
    assert not any(x.requires_grad for x in gae(ones, ones, active, bootstrap=scores))
    assert not whiten(ones, active).requires_grad
    assert whiten(ones, active).dtype == torch.float32  # 0 / sqrt(0 + 1e-8): a root of less than nothing is not real
    assert torch.equal(whiten(ones, active), torch.zeros(2, 3))
    assert not whiten(ones, ~active).requires_grad


def test_the_reference_of_grpo_is_a_constant():
    policy, ref = torch.full((1, 2), -1.0, requires_grad=True), torch.full((1, 2), -2.0, requires_grad=True)
    old, weights = torch.full((1, 2), -1.0), torch.full((1, 2), 0.5)
    loss, metrics = grpo_loss(policy, old, torch.zeros(1), weights, ref_logps=ref, kl_coef=0.1)
    loss.backward()
    assert ref.grad is None and policy.grad.abs().sum() > 0
    assert not any(x.requires_grad for name in ("kl", "kl_k1") for x in metrics[name])


def test_gae_looks_over_what_is_no_step():
    """A gap between two steps (another turn, a tool's answer) is none of them: the two as neighbours give the same.

    Rewards 0 and 1, values 0.2 and 0.6, λ = 0.5: A_2 = 1 − 0.6 = 0.4, A_1 = 0.6 − 0.2 + 0.5 · 0.4 = 0.6."""
    on = torch.tensor([[True, False, True]])
    advantages, returns = gae(torch.tensor([[0.0, 9.0, 1.0]]), torch.tensor([[0.2, 9.0, 0.6]]), on, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.6, 0.0, 0.4]]))
    torch.testing.assert_close(returns, torch.tensor([[0.8, 0.0, 1.0]]))
