import math

import pytest
import torch

from losses.reward import bradley_terry_loss, outcome_loss

C, R = torch.tensor([1.5]), torch.tensor([0.5])


def test_pencil_values():
    # −log σ(1) = log(1 + e^−1) = .313262;  with m = ½: −log σ(½) = .474077, + .01 · 2² = .514077
    assert bradley_terry_loss(C, R)[0].item() == pytest.approx(0.313262, abs=1e-6)
    assert bradley_terry_loss(C, R, margin=0.5, center_coef=0.01)[0].item() == pytest.approx(0.514077, abs=1e-6)
    assert bradley_terry_loss(C, R, margin=torch.tensor([0.5]))[0].item() == pytest.approx(0.474077, abs=1e-6)
    assert bradley_terry_loss(R, C)[0].item() == pytest.approx(1.313262, abs=1e-6)  # −log σ(−1) = 1 + .313262
    # right: .313262, wrong: 1.313262, mean .813262;  a label of ½ weighs both: ½ (.313262 + 1.313262)
    assert outcome_loss(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]))[0].item() == pytest.approx(
        0.813262, abs=1e-6
    )
    assert outcome_loss(torch.tensor([1.0]), torch.tensor([0.5]))[0].item() == pytest.approx(0.813262, abs=1e-6)
    assert outcome_loss(torch.zeros(3), torch.tensor([1, 0, 1]))[0].item() == pytest.approx(math.log(2), abs=1e-6)


def test_pencil_gradients():
    c, r = C.clone().requires_grad_(), R.clone().requires_grad_()
    bradley_terry_loss(c, r, center_coef=0.01)[0].backward()
    # ∓(1 − σ(1)) = ∓.268941, and 2 · .01 · (1.5 + .5) = .04 on both
    assert (c.grad.item(), r.grad.item()) == pytest.approx((-0.268941 + 0.04, 0.268941 + 0.04), abs=1e-6)
    s = torch.tensor([1.0, 1.0], requires_grad=True)
    outcome_loss(s, torch.tensor([1.0, 0.0]))[0].backward()
    assert s.grad.tolist() == pytest.approx([0.5 * (0.731059 - 1), 0.5 * 0.731059], abs=1e-6)  # ½ (σ(s) − y)


def test_metrics():
    _, m = bradley_terry_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
    assert {k: (s / n).item() for k, (s, n) in m.items()} == {
        "rewards_chosen": 1.0, "rewards_rejected": 2.0, "accuracy": 0.5, "margin": -1.0,
    }  # fmt: skip
    _, m = outcome_loss(torch.tensor([2.0, 1.0, -1.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert {k: (s / n).item() for k, (s, n) in m.items()} == pytest.approx({"accuracy": 2 / 3, "rewards": 2 / 3})


def test_a_constant_on_both_scores_changes_nothing_but_the_centring():
    assert bradley_terry_loss(C + 7, R + 7)[0].item() == pytest.approx(bradley_terry_loss(C, R)[0].item(), abs=1e-6)
    centred = bradley_terry_loss(C + 7, R + 7, center_coef=0.01)[0] - bradley_terry_loss(C, R, center_coef=0.01)[0]
    assert centred.item() == pytest.approx(0.01 * (16**2 - 2**2), abs=1e-5)


@pytest.mark.parametrize("name", ["pairs", "labels"])
def test_split_invariance(name):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, generator=g), torch.randn(6, generator=g)

    def loss(rows, weights):
        if name == "pairs":
            return bradley_terry_loss(a[rows], b[rows], margin=0.3, center_coef=0.02, weights=weights)
        return outcome_loss(a[rows], (b[rows] > 0).float(), weights=weights)

    whole, metrics = loss(slice(None), None)
    parts = [loss(rows, torch.full((len(a[rows]),), 1 / 6)) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert sum(p[0].item() for p in parts) == pytest.approx(whole.item(), abs=1e-6)
    for key in metrics:
        assert sum(p[1][key][0].item() for p in parts) == pytest.approx(metrics[key][0].item(), abs=1e-5)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_pair_with_weight_0_may_hold_anything(garbage):
    c, r = torch.tensor([1.5, garbage], requires_grad=True), torch.tensor([0.5, garbage], requires_grad=True)
    loss, metrics = bradley_terry_loss(
        c, r, margin=torch.tensor([0.0, garbage]), center_coef=0.1, weights=torch.tensor([1.0, 0.0])
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.313262 + 0.1 * 4, abs=1e-6) and c.grad[1] == r.grad[1] == 0
    assert metrics["accuracy"][1] == 1
    s = torch.tensor([1.0, garbage], requires_grad=True)
    loss, _ = outcome_loss(s, torch.tensor([1.0, garbage]), weights=torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.313262, abs=1e-6) and s.grad[1] == 0


def test_purity_and_dtype():
    c, r = torch.tensor([1.5, 2.0], dtype=torch.bfloat16), torch.tensor([0.5, 1.0], dtype=torch.bfloat16)
    before = c.clone()
    loss, metrics = bradley_terry_loss(c, r)
    assert loss.dtype == torch.float32 and torch.equal(c, before)
    assert not any(s.requires_grad for s, _ in metrics.values())
    assert bradley_terry_loss(torch.zeros(0), torch.zeros(0))[0].item() == 0


def test_extreme_scores_stay_finite():
    big = torch.tensor([1e4], requires_grad=True)
    loss = bradley_terry_loss(-big, big)[0]
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(big.grad).all()


def test_a_separable_set_is_learned():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=g)
    y = torch.randn(200, 4, generator=g)
    true = torch.tensor([1.0, -2.0, 0.5, 0.0])
    swap = (x @ true < y @ true)[:, None]
    chosen, rejected = torch.where(swap, y, x), torch.where(swap, x, y)
    w = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1)
    for _ in range(100):
        loss, metrics = bradley_terry_loss(chosen @ w, rejected @ w)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (metrics["accuracy"][0] / metrics["accuracy"][1]).item() > 0.95


def test_refusals():
    with pytest.raises(ValueError, match="center_coef"):
        bradley_terry_loss(C, R, center_coef=-1.0)
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        bradley_terry_loss(C, torch.zeros(2))
    with pytest.raises(AssertionError, match="margin"):
        bradley_terry_loss(C, R, margin=torch.zeros(3))
    with pytest.raises(ValueError, match="labels must lie in 0"):
        outcome_loss(C, torch.tensor([2.0]))
    with pytest.raises(AssertionError, match=r"same shape \[B\]"):
        outcome_loss(C, torch.zeros(1, 1))
