"""The same as losses.distill, with the head inside and in chunks: value and gradients."""

import math

import pytest
import torch

from losses.distill import distillation_loss
from losses.distill_chunked import chunked_distillation_loss


def given(rows=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden, head, bias = (torch.randn(*s, generator=g, dtype=dtype).requires_grad_() for s in ((rows, 4), (9, 4), (9,)))
    weights = torch.rand(rows, generator=g, dtype=dtype) + 0.1
    weights[2] = 0
    return hidden, head, bias, torch.randn(rows, 9, generator=g, dtype=dtype), weights


def test_pencil_value_and_gradient():
    # one position, T = (.5, .5), S = (.9, .1): KL(T‖S) = .510826; d / d logits = S − T = (.4, −.4); weight 1/2
    hidden, head = torch.tensor([[0.9, 0.1]]).log().requires_grad_(), torch.eye(2).requires_grad_()
    teacher = torch.tensor([[0.5, 0.5]]).log()
    loss, metrics = chunked_distillation_loss(hidden, head, teacher, torch.tensor([0.5]), mixture=0)
    assert loss.item() == pytest.approx(0.255413, abs=1e-6)
    assert [float(x) for x in metrics["divergence"]] == [pytest.approx(0.510826, abs=1e-6), 1]
    (3 * loss).backward()
    assert hidden.grad[0].tolist() == pytest.approx([0.6, -0.6], abs=1e-6)  # 3 · ½ · .4
    # d / d W = (S − T) hᵀ: 3 · ½ · .4 · (log .9, log .1) = .6 · (−.105361, −2.302585)
    assert head.grad.flatten().tolist() == pytest.approx([-0.063216, -1.381551, 0.063216, 1.381551], abs=1e-5)


@pytest.mark.parametrize("mixture", [0, 0.3, 1])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_plain_way(mixture, chunk_size, with_bias):
    hidden, head, bias, teacher, weights = given()
    trained = (hidden, head, bias) if with_bias else (hidden, head)
    how = {"mixture": mixture, "temperature": 0.7}
    loss, metrics = chunked_distillation_loss(
        hidden, head, teacher, weights, head_bias=bias if with_bias else None, chunk_size=chunk_size, **how
    )
    grads = torch.autograd.grad(loss, trained)
    logits = torch.nn.functional.linear(hidden, head, bias if with_bias else None)
    padded = [torch.cat([x, x[:1]])[None] for x in (logits, teacher)]  # a last position, which is dropped
    expected, told = distillation_loss(*padded, weights[None], **how)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for grad, other in zip(grads, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(grad, other, atol=1e-12, rtol=1e-9)
    for (a, b), (c, d) in zip(metrics.values(), told.values(), strict=True):
        assert a.item() == pytest.approx(c.item()) and b.item() == d.item() and not a.requires_grad


def test_split_invariance():
    hidden, head, _, teacher, weights = given()
    whole = chunked_distillation_loss(hidden, head, teacher, weights)[0]
    parts = [chunked_distillation_loss(hidden[s], head, teacher[s], weights[s])[0] for s in (slice(0, 3), slice(3, 7))]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), head), torch.autograd.grad(whole, head))


def test_a_position_of_weight_0_may_hold_anything():
    for garbage in (math.nan, math.inf):
        hidden, head, _, teacher, weights = given()
        clean = chunked_distillation_loss(hidden, head, teacher, weights)[0].item()
        dirty, broken = hidden.detach().clone(), teacher.clone()
        dirty[2], broken[2] = garbage, garbage
        loss, _ = chunked_distillation_loss(dirty.requires_grad_(), head, broken, weights)
        loss.backward()
        assert loss.item() == clean and (dirty.grad[2] == 0).all()
        assert torch.isfinite(dirty.grad).all() and torch.isfinite(head.grad).all()


def test_nothing_counts():
    hidden, head, _, teacher, weights = given()
    loss, metrics = chunked_distillation_loss(hidden, head, teacher, torch.zeros_like(weights))
    loss.backward()
    assert loss.item() == 0 and head.grad.abs().sum() == 0 and metrics["divergence"][1].item() == 0
    none = chunked_distillation_loss(hidden[:0], head, teacher[:0], weights[:0])[0]
    assert none.item() == 0 and none.requires_grad


def test_purity_and_a_frozen_head():
    hidden, head, bias, teacher, weights = given()
    before = [x.detach().clone() for x in (hidden, head, bias, teacher, weights)]
    teacher.requires_grad_()
    weights.requires_grad_()
    frozen = head.detach()
    loss, _ = chunked_distillation_loss(hidden, frozen, teacher, weights, head_bias=bias.detach())
    loss.backward()
    assert hidden.grad.abs().sum() > 0 and teacher.grad is None and weights.grad is None
    assert all(torch.equal(x.detach(), y) for x, y in zip((hidden, head, bias, teacher, weights), before, strict=True))


def test_under_autocast_and_in_bf16():
    hidden, head, bias, teacher, weights = given(dtype=torch.float32)
    exact = chunked_distillation_loss(hidden, head, teacher, weights, head_bias=bias)[0].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = chunked_distillation_loss(hidden, head, teacher, weights, head_bias=bias, chunk_size=2)
    assert loss.dtype == torch.float32 and exact != loss.item() == pytest.approx(exact, rel=0.02)
    loss.backward()
    assert hidden.grad.dtype == head.grad.dtype == bias.grad.dtype == torch.float32
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, head, bias)]
    loss, _ = chunked_distillation_loss(low[0], low[1], teacher.bfloat16(), weights, head_bias=low[2])
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02) and all(x.grad.dtype == torch.bfloat16 for x in low)


def test_a_frozen_bias_under_a_trained_head():
    hidden, head, bias, teacher, weights = given()
    chunked_distillation_loss(hidden, head, teacher, weights, head_bias=bias.detach())[0].backward()
    assert head.grad is not None and bias.grad is None


def test_refusals():
    hidden, head, _, teacher, weights = given()
    with pytest.raises(AssertionError, match=r"hidden \[7, H\] wants teacher_logits \[7, 9\]"):
        chunked_distillation_loss(hidden, head, teacher[:, :8], weights)
    with pytest.raises(AssertionError, match=r"weights \[7\]"):
        chunked_distillation_loss(hidden, head, teacher, weights[:3])
    with pytest.raises(ValueError, match="mixture"):
        chunked_distillation_loss(hidden, head, teacher, weights, mixture=2)
