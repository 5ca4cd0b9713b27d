import math

import pytest
import torch

from losses.grpo import grpo_loss
from losses.gspo import gspo_loss
from losses.weights import token_weights

OLD = torch.tensor([[-1.0, -2.0, -0.5]])
LOG_RATIO = torch.tensor([[0.2, -0.1, 0.5]])
ACTIVE = torch.tensor([[True, True, False]])
HALF = torch.tensor([[0.5, 0.5, 0.0]])


def case(log_ratio, advantage, **clips):
    """One answer of two tokens whose log-ratios have this mean: (loss, gradient of each token, metrics)."""
    policy = (OLD + torch.tensor([[log_ratio + 0.3, log_ratio - 0.3, 7.0]])).requires_grad_()
    loss, metrics = gspo_loss(policy, OLD, torch.tensor([advantage]), HALF, **clips)
    loss.backward()
    return loss.item(), policy.grad[0].tolist(), metrics


def test_pencil_value():
    # ρ = exp((0.2 − 0.1) / 2) = 1.051271. A = −1: −min(−1.051271, −1.0004) = ρ; A = +1: −min(1.051271, 1.0004)
    for advantage, value in ((-1.0, 1.051271), (1.0, -1.0004)):
        loss, metrics = gspo_loss(OLD + LOG_RATIO, OLD, torch.tensor([advantage]), HALF)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert metrics["ratio"][0].item() == pytest.approx(1.051271, abs=1e-6) and metrics["ratio"][1].item() == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.3, 1.0, -1.2, 0.0),  # −min(1.3, 1.2): the whole answer is clipped
        (1.3, -2.0, 2.6, 1.3),  # −min(−2.6, −2.4): gradient of each token −A ρ / |y| = 2 · 1.3 / 2
        (0.7, 1.0, -0.7, -0.35),  # −min(0.7, 0.8): −0.7 / 2
        (0.7, -1.0, 0.8, 0.0),  # −min(−0.7, −0.8)
    ],
)
def test_pencil_values_and_gradients_of_clipping(ratio, advantage, value, gradient):
    loss, grad, metrics = case(math.log(ratio), advantage, clip_low=0.2, clip_high=0.2)
    assert loss == pytest.approx(value, abs=1e-6)
    assert grad == pytest.approx([gradient, gradient, 0.0], abs=1e-6)
    assert [x.item() for x in metrics["clip_fraction"]] == [float(gradient == 0), 1]


def test_separate_clip_ranges():
    assert case(math.log(1.5), 1.0, clip_high=0.28)[0] == pytest.approx(-1.28, abs=1e-6)
    assert case(math.log(0.5), -1.0, clip_low=0.1)[0] == pytest.approx(0.9, abs=1e-6)
    assert case(0.01, 1.0)[0] == pytest.approx(-1.0004, abs=1e-6)  # the defaults
    assert case(-0.01, -1.0)[0] == pytest.approx(0.9997, abs=1e-6)


def test_every_answer_has_one_vote():
    # 1 and 3 tokens, the same mean log-ratio: ρ = e^0.1, ½ (ρ · 1) of the first (A = −1), ½ (ρ · 2) of the second (A = −2)
    log_ratio = torch.tensor([[0.1, 0.0, 0.0], [0.3, 0.0, 0.0]])
    active = torch.tensor([[True, False, False], [True, True, True]])
    old = torch.full((2, 3), -1.0)
    loss, metrics = gspo_loss(
        old + log_ratio, old, torch.tensor([-1.0, -2.0]), token_weights(active, "sequence"), clip_high=0.5
    )
    assert loss.item() == pytest.approx(1.5 * math.exp(0.1), abs=1e-6)
    assert metrics["ratio"][0].item() == pytest.approx(2 * math.exp(0.1), abs=1e-6) and metrics["ratio"][1].item() == 2


def test_kl_is_paid_token_by_token():
    # A = 0, β = 1, one token of weight 1: log π = −1, π_old −1.2, π_ref −1.5: ρ k3 = e^0.2 · 0.106531 = 0.130117; k3; k2 = ½ · ½²
    policy, old, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.2]]), torch.tensor([[-1.5]])
    for estimator, value in (("k3_is", 0.130117), ("k3", 0.106531), ("k2", 0.125)):
        loss, metrics = gspo_loss(
            policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref, kl_coef=1.0, kl_estimator=estimator
        )
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6)
        assert metrics["kl_k1"][0].item() == pytest.approx(0.5, abs=1e-6)
    half, _ = gspo_loss(policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref, kl_coef=0.5)
    assert half.item() == pytest.approx(0.065058, abs=1e-6)


def test_split_invariance_of_value_gradient_and_metrics():
    g = torch.Generator().manual_seed(0)
    policy, old, ref = (-3 * torch.rand(5, 4, generator=g) for _ in range(3))
    active, a = torch.rand(5, 4, generator=g) < 0.7, torch.randn(5, generator=g)
    weights = token_weights(active, "sequence")

    def run(pieces):
        x = policy.clone().requires_grad_()
        outs = [gspo_loss(x[p], old[p], a[p], weights[p], ref_logps=ref[p], kl_coef=0.1) for p in pieces]
        sum(o[0] for o in outs).backward()
        return sum(o[0] for o in outs).item(), x.grad, {k: sum(o[1][k][0] for o in outs).item() for k in outs[0][1]}

    whole, parts = run([slice(0, 5)]), run([slice(0, 2), slice(2, 3), slice(3, 5)])
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-7, rtol=0)
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_in_padding_changes_nothing(garbage):
    clean, dirty = (OLD + LOG_RATIO)[:, :2].clone(), torch.full((2, 3), garbage)
    dirty[0, :2] = clean[0]
    old, ref, weights = (torch.full((2, 3), x) for x in (garbage, garbage, 0.0))
    old[0, :2], ref[0, :2], weights[0, :2] = OLD[0, :2], -1.0, 0.5
    clean.requires_grad_(), dirty.requires_grad_()
    a, b = (
        gspo_loss(clean, OLD[:, :2], -torch.ones(1), HALF[:, :2], ref_logps=-torch.ones(1, 2), kl_coef=0.1),
        gspo_loss(dirty, old, torch.tensor([-1.0, garbage]), weights, ref_logps=ref, kl_coef=0.1),
    )
    a[0].backward(), b[0].backward()
    assert a[0].item() == b[0].item()
    assert dirty.grad.tolist() == [[*clean.grad[0].tolist(), 0.0], [0.0] * 3] and clean.grad.abs().sum() > 0
    assert {k: [x.item() for x in v] for k, v in a[1].items()} == {k: [x.item() for x in v] for k, v in b[1].items()}


def test_nothing_active_is_zero_with_a_graph():
    policy = torch.full((2, 2), math.nan, requires_grad=True)
    loss, metrics = gspo_loss(policy, policy.detach(), torch.zeros(2), torch.zeros(2, 2))
    loss.backward()
    assert loss.item() == 0 and policy.grad.tolist() == [[0.0, 0.0]] * 2
    assert [x.item() for x in metrics["ratio"]] == [0, 0]


def test_only_the_policy_carries_gradient_and_nothing_given_is_changed():
    given = [torch.full((1, 2), -1.0 - i, requires_grad=True) for i in range(3)]
    a, w = torch.ones(1, requires_grad=True), torch.full((1, 2), 0.5, requires_grad=True)
    before = [x.detach().clone() for x in (*given, a, w)]
    loss, metrics = gspo_loss(given[0], given[1], a, w, clip_high=9.0, ref_logps=given[2], kl_coef=1.0)
    assert loss.ndim == 0 and not any(x.requires_grad for pair in metrics.values() for x in pair)
    loss.backward()
    assert given[0].grad.abs().sum() > 0 and all(x.grad is None for x in (*given[1:], a, w))
    for x, y in zip((*given, a, w), before, strict=True):
        assert torch.equal(x.detach(), y)


def test_bf16_log_probs_are_summed_in_float32():
    policy = (OLD + LOG_RATIO).bfloat16()
    loss, _ = gspo_loss(policy, OLD.bfloat16(), -torch.ones(1), HALF)
    # bf16 of −0.8 and −2.1 are −0.80078125 and −2.09375: exp((0.19921875 − 0.09375) / 2)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.exp(0.052734375), abs=1e-6)


def test_on_policy_it_is_grpo_with_sequence_weights():
    g = torch.Generator().manual_seed(1)
    logps, ref, a = -3 * torch.rand(4, 3, generator=g), -3 * torch.rand(4, 3, generator=g), torch.randn(4, generator=g)
    weights = token_weights(
        torch.tensor([[True] * 3, [True, True, False], [True, False, False], [True] * 3]), "sequence"
    )
    grads = []
    for loss_of in (gspo_loss, grpo_loss):
        x = logps.clone().requires_grad_()
        loss_of(x, logps, a, weights, ref_logps=ref, kl_coef=0.1)[0].backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=0)


def test_the_reference_without_coefficient_only_reports():
    loss, metrics = gspo_loss(OLD, OLD, torch.zeros(1), HALF, ref_logps=OLD - 0.5)
    assert loss.item() == 0 and metrics["kl_k1"][0].item() == pytest.approx(1.0)  # two tokens, ½ each


def test_one_advantage_along_an_answer_may_be_given_per_token():
    per_token = torch.tensor([[-1.0, -1.0, 5.0]])  # the last one is padding
    loss, _ = gspo_loss(OLD + LOG_RATIO, OLD, per_token, HALF)
    assert loss.item() == pytest.approx(1.051271, abs=1e-6)


def test_refusals():
    x, a, w = torch.full((2, 2), -1.0), torch.zeros(2), torch.full((2, 2), 0.25)
    active = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ValueError, match="every answer one vote"):
        gspo_loss(x, x, a, token_weights(active, "token"))
    with pytest.raises(ValueError, match="every answer one vote"):
        gspo_loss(x, x, a, token_weights(active, "constant", total=10_000))
    with pytest.raises(ValueError, match="every answer one vote"):
        gspo_loss(x, x, a, torch.tensor([[0.2, 0.3], [0.25, 0.25]]))  # equal votes, not shared evenly
    with pytest.raises(ValueError, match="one advantage per answer"):
        gspo_loss(x, x, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), w)
    with pytest.raises(ValueError, match="needs ref_logps"):
        gspo_loss(x, x, a, w, kl_coef=0.1)
    with pytest.raises(ValueError, match="expected gradient of 0"):
        gspo_loss(x, x, a, w, ref_logps=x, kl_coef=0.1, kl_estimator="k1")
    with pytest.raises(ValueError, match="clip_low"):
        gspo_loss(x, x, a, w, clip_low=1.5)
    with pytest.raises(AssertionError, match="advantages"):
        gspo_loss(x, x, torch.zeros(3), w)
    with pytest.raises(AssertionError, match="same shape"):
        gspo_loss(x, x[:1], a, w)
