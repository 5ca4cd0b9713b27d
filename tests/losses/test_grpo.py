import math

import pytest
import torch

from losses.grpo import grpo_loss
from losses.weights import token_weights


def ratio_case(ratio, advantage):
    old = torch.tensor([[-1.0]])
    policy = (old + math.log(ratio)).requires_grad_()
    loss, metrics = grpo_loss(policy, old, torch.tensor([advantage]), torch.ones(1, 1))
    loss.backward()
    return loss.item(), policy.grad.item(), metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.3, 1.0, -1.2, 0.0),  # −min(1.3, 1.2): clipped, no gradient
        (1.3, -1.0, 1.3, 1.3),  # −min(−1.3, −1.2) = 1.3: the pessimistic side, gradient ρ · −A
        (0.7, 1.0, -0.7, -0.7),  # −min(0.7, 0.8)
        (0.7, -1.0, 0.8, 0.0),  # −min(−0.7, −0.8) = 0.8: clipped
    ],
)
def test_pencil_values_and_gradients_of_clipping(ratio, advantage, value, gradient):
    loss, grad, metrics = ratio_case(ratio, advantage)
    assert loss == pytest.approx(value, abs=1e-6)
    assert grad == pytest.approx(gradient, abs=1e-6)
    assert metrics["clip_fraction"][0].item() == float(gradient == 0)
    assert metrics["ratio"][0].item() == pytest.approx(ratio, abs=1e-6)


def test_on_policy_the_gradient_is_reinforce_and_not_zero():
    # ρ = 1: L = −Σ w A in value (here 0), dL/dlogπ = −w A
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]], requires_grad=True)
    weights = torch.full((2, 2), 0.25)
    loss, metrics = grpo_loss(logps, logps.detach(), torch.tensor([1.0, -1.0]), weights)
    loss.backward()
    assert loss.item() == 0.0
    assert logps.grad.tolist() == [[-0.25, -0.25], [0.25, 0.25]]
    assert metrics["clip_fraction"][0].item() == 0


def test_separate_clip_ranges():
    old, adv, w = torch.tensor([[-1.0]]), torch.tensor([1.0]), torch.ones(1, 1)
    up = old + math.log(1.5)
    assert grpo_loss(up, old, adv, w, clip_high=0.28)[0].item() == pytest.approx(-1.28, abs=1e-6)
    down = old + math.log(0.5)
    assert grpo_loss(down, old, -adv, w, clip_low=0.1)[0].item() == pytest.approx(0.9, abs=1e-6)


def test_length_weightings():
    # lengths 2 (A = +1) and 4 (A = −1), ρ = 1, per token −A: sequence −½ + ½ = 0, token (−2 + 4) / 6, constant (−2 + 4) / 16
    logps = torch.full((2, 4), -1.0)
    active = torch.tensor([[True, True, False, False], [True] * 4])
    advantages = torch.tensor([1.0, -1.0])
    got = [
        grpo_loss(logps, logps, advantages, token_weights(active, how, total=total))[0].item()
        for how, total in (("sequence", None), ("token", None), ("constant", 16))
    ]
    assert got == pytest.approx([0.0, 1 / 3, 0.125], abs=1e-6)


def test_masking_a_row_removes_it_from_numerator_and_denominator():
    logps = torch.full((2, 4), -1.0)
    active = torch.tensor([[True, True, False, False], [False] * 4])
    loss, metrics = grpo_loss(logps, logps, torch.tensor([1.0, -1.0]), token_weights(active))
    assert loss.item() == pytest.approx(-1.0) and metrics["ratio"][1].item() == 2


def test_kl_term_pencil_value_and_metrics():
    # A = 0, β = 0.5, log π = −1, log π_ref = −1.5, ρ = 1: 0.5 · 0.106531 = 0.053265 for k3 and k3_is; 0.5 · 0.125 for k2
    logps, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
    zero, w = torch.zeros(1), torch.ones(1, 1)
    for estimator, value in (("k3_is", 0.053265), ("k3", 0.053265), ("k2", 0.0625)):
        loss, metrics = grpo_loss(logps, logps, zero, w, ref_logps=ref, kl_coef=0.5, kl_estimator=estimator)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        assert metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6)
        assert metrics["kl_k1"][0].item() == pytest.approx(0.5, abs=1e-6)


def test_off_policy_the_kl_term_is_weighted_by_the_ratio():
    # A = 0, β = 1, log π = −1, π_old −1.2, π_ref −1.5: ρ = e^0.2 = 1.221403, k3 = 0.106531, ρ · k3 = 0.130117
    policy, old, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.2]]), torch.tensor([[-1.5]])
    loss, _ = grpo_loss(policy, old, torch.zeros(1), torch.ones(1, 1), ref_logps=ref, kl_coef=1.0)
    assert loss.item() == pytest.approx(0.130117, abs=1e-6)


def test_kl_gradients_differ_as_the_table_in_kl_says():
    # on policy d k3_is / d log π = k3 + dk3 = k3 + (1 − r) = 0.106531 + 0.393469 = 0.5 = k1 (REINFORCE on k1);  d k3 = 1 − r = 0.393469
    for estimator, gradient in (("k3_is", 0.5), ("k3", 0.393469), ("k2", 0.5)):
        logps = torch.tensor([[-1.0]], requires_grad=True)
        loss, _ = grpo_loss(
            logps, logps.detach(), torch.zeros(1), torch.ones(1, 1),
            ref_logps=torch.tensor([[-1.5]]), kl_coef=1.0, kl_estimator=estimator,
        )  # fmt: skip
        loss.backward()
        assert logps.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_reference_without_coefficient_only_reports():
    logps = torch.tensor([[-1.0]])
    loss, metrics = grpo_loss(logps, logps, torch.zeros(1), torch.ones(1, 1), ref_logps=torch.tensor([[-1.5]]))
    assert loss.item() == 0 and metrics["kl"][0].item() == pytest.approx(0.106531, abs=1e-6)


def test_advantages_per_token_equal_advantages_per_row():
    g = torch.Generator().manual_seed(0)
    policy, old, w = -torch.rand(2, 3, generator=g), -torch.rand(2, 3, generator=g), torch.full((2, 3), 1 / 6)
    a = torch.tensor([1.0, -2.0])
    assert torch.equal(grpo_loss(policy, old, a, w)[0], grpo_loss(policy, old, a[:, None].expand(2, 3), w)[0])


def test_split_invariance_of_value_gradient_and_metrics():
    g = torch.Generator().manual_seed(0)
    policy, old, ref = (-3 * torch.rand(5, 4, generator=g) for _ in range(3))
    active, a = torch.rand(5, 4, generator=g) < 0.7, torch.randn(5, generator=g)
    weights = token_weights(active)

    def run(pieces):
        x = policy.clone().requires_grad_()
        outs = [grpo_loss(x[p], old[p], a[p], weights[p], ref_logps=ref[p], kl_coef=0.1) for p in pieces]
        sum(o[0] for o in outs).backward()
        return sum(o[0] for o in outs).item(), x.grad, {k: sum(o[1][k][0] for o in outs).item() for k in outs[0][1]}

    whole, parts = run([slice(0, 5)]), run([slice(0, 2), slice(2, 3), slice(3, 5)])
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-7, rtol=0)
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)


def test_garbage_in_padding_changes_nothing():
    nan = math.nan
    policy = torch.tensor([[-1.0, nan], [nan, nan]], requires_grad=True)
    old, ref = torch.tensor([[-1.1, math.inf], [nan, nan]]), torch.tensor([[-0.9, -math.inf], [nan, nan]])
    loss, metrics = grpo_loss(
        policy, old, torch.tensor([1.0, nan]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), ref_logps=ref, kl_coef=0.1
    )
    loss.backward()
    clean = torch.tensor([[-1.0]], requires_grad=True)
    expected, m = grpo_loss(
        clean, old[:1, :1], torch.tensor([1.0]), torch.ones(1, 1), ref_logps=ref[:1, :1], kl_coef=0.1
    )
    expected.backward()
    assert loss.item() == expected.item()
    assert policy.grad.tolist() == [[clean.grad.item(), 0.0], [0.0, 0.0]]
    assert all(metrics[k][0].item() == m[k][0].item() and metrics[k][1].item() == 1 for k in m)


def test_nothing_active_is_zero_with_a_graph():
    policy = torch.full((1, 2), math.nan, requires_grad=True)
    loss, _ = grpo_loss(policy, policy.detach(), torch.zeros(1), torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0 and policy.grad.tolist() == [[0.0, 0.0]]


def test_only_the_policy_carries_gradient():
    given = [torch.full((1, 1), -1.0, requires_grad=True) for _ in range(3)]
    a = torch.ones(1, requires_grad=True)
    grpo_loss(given[0], given[1], a, torch.ones(1, 1), ref_logps=given[2], kl_coef=1.0)[0].backward()
    assert given[0].grad is not None and given[1].grad is None and given[2].grad is None and a.grad is None


def test_purity():
    policy, old = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    a, w = torch.tensor([1.0]), torch.tensor([[0.5, 0.0]])
    grpo_loss(policy, old, a, w, ref_logps=old, kl_coef=0.1)
    assert (
        policy.tolist() == [[-1.0, -2.0]]
        and old.tolist() == [[-1.5, -1.0]]
        and a.tolist() == [1.0]
        and w.tolist() == [[0.5, 0.0]]
    )


def test_refusals():
    x, a, w = torch.tensor([[-1.0]]), torch.zeros(1), torch.ones(1, 1)
    with pytest.raises(ValueError, match="needs ref_logps"):
        grpo_loss(x, x, a, w, kl_coef=0.1)
    with pytest.raises(ValueError, match="expected gradient of 0"):
        grpo_loss(x, x, a, w, ref_logps=x, kl_coef=0.1, kl_estimator="k1")
    with pytest.raises(ValueError, match="k3_is"):
        grpo_loss(x, x, a, w, ref_logps=x, kl_coef=0.1, kl_estimator="k4")
    with pytest.raises(ValueError, match="pay the policy"):
        grpo_loss(x, x, a, w, kl_coef=-0.1)
    with pytest.raises(ValueError, match="clip_low"):
        grpo_loss(x, x, a, w, clip_low=1.5)
    with pytest.raises(AssertionError, match="advantages"):
        grpo_loss(x, x, torch.zeros(2), w)
