import math

import pytest
import torch

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy, dft_loss
from losses.weights import token_weights


def test_pencil_value_and_gradient():
    # −½ log ¼ − ½ log ⅛ = ½ (2 + 3) log 2 = 2.5 · 0.693147 = 1.732868; the gradient with respect to log p is −w
    logps = torch.log(torch.tensor([[0.5, 0.25, 0.125]])).requires_grad_()
    loss, metrics = completion_cross_entropy(logps, torch.tensor([[0.0, 0.5, 0.5]]))
    assert loss.item() == pytest.approx(1.732868, abs=1e-6)
    loss.backward()
    assert logps.grad.tolist() == [[0.0, -0.5, -0.5]]
    total, count = metrics["nll"]
    assert (total.item(), count.item()) == (pytest.approx(3.465736, abs=1e-6), 2)  # 5 log 2 over two tokens


def test_uniform_logits_give_log_v():
    logits, ids = torch.zeros(2, 5, 7), torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(0))
    active = torch.tensor([[False, False, True, True], [False, True, False, False]])
    loss, _ = completion_cross_entropy(token_logps(logits, ids), token_weights(active))
    assert loss.item() == pytest.approx(1.945910, abs=1e-6)  # log 7


def test_a_masked_label_changes_neither_loss_nor_gradient():
    g = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(1, 6, 11, generator=g), torch.randint(0, 11, (1, 6), generator=g)
    active = torch.tensor([[False, False, True, True, True]])

    def run(ids):
        x = logits.clone().requires_grad_()
        loss, _ = completion_cross_entropy(token_logps(x, ids), token_weights(active))
        loss.backward()
        return loss.item(), x.grad

    other = ids.clone()
    other[0, 1:3] = (ids[0, 1:3] + 5) % 11  # prompt labels
    (a, grad_a), (b, grad_b) = run(ids), run(other)
    assert a == b and torch.equal(grad_a, grad_b)


def test_micro_batches_of_4_and_111_give_175():
    # token NLLs {4} and {1, 1, 1}: (4 + 1 + 1 + 1) / 4 = 1.75; the mean of the micro-batch means would be 2.5
    a, b = torch.tensor([[-4.0, 0.0, 0.0]]), torch.tensor([[-1.0, -1.0, -1.0]])
    active_a, active_b = torch.tensor([[True, False, False]]), torch.tensor([[True, True, True]])
    parts = [
        completion_cross_entropy(x, token_weights(m, total=4))[0].item() for x, m in ((a, active_a), (b, active_b))
    ]
    assert sum(parts) == pytest.approx(1.75)
    whole, _ = completion_cross_entropy(torch.cat([a, b]), token_weights(torch.cat([active_a, active_b])))
    assert whole.item() == pytest.approx(1.75)


def test_garbage_in_padding_changes_nothing():
    logps = torch.tensor([[-1.0, math.nan, -math.inf, -2.0]], requires_grad=True)
    loss, metrics = completion_cross_entropy(logps, torch.tensor([[0.5, 0.0, 0.0, 0.5]]))
    loss.backward()
    assert loss.item() == 1.5 and metrics["nll"][0].item() == 3.0
    assert logps.grad.tolist() == [[-0.5, 0.0, 0.0, -0.5]]


def test_nothing_to_learn_is_zero_with_a_graph():
    logps = torch.full((1, 3), math.nan, requires_grad=True)
    loss, _ = completion_cross_entropy(logps, torch.zeros(1, 3))
    loss.backward()
    assert loss.item() == 0.0 and logps.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_purity():
    logps, weights = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    completion_cross_entropy(logps, weights)
    assert logps.tolist() == [[-1.0, -2.0]] and weights.tolist() == [[0.0, 1.0]]


def test_no_gradient_through_the_weights_and_float32_out():
    logps = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    weights = torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss, metrics = completion_cross_entropy(logps, weights)
    loss.backward()
    assert loss.dtype == torch.float32 and weights.grad is None
    assert not any(x.requires_grad for pair in metrics.values() for x in pair)


def test_refuses_other_ranks():
    with pytest.raises(AssertionError, match=r"\[B, T\]"):
        completion_cross_entropy(torch.zeros(3), torch.zeros(3))


def test_dft_pencil_value_and_gradient():
    # p = 0.5: 0.5 · log 2 = 0.346574; p = 0.25: 0.25 · log 4 = 0.346574. The gradient w.r.t. log p is −w p: p has none
    logps = torch.log(torch.tensor([[0.5, 0.25, 0.125]])).requires_grad_()
    loss, metrics = dft_loss(logps, torch.tensor([[1.0, 2.0, 0.0]]))
    assert loss.item() == pytest.approx(1.039721, abs=1e-6)  # 0.346574 + 2 · 0.346574
    loss.backward()
    assert logps.grad[0].tolist() == pytest.approx([-0.5, -0.5, 0.0], abs=1e-6)
    assert [x.item() for x in metrics["nll"]] == [pytest.approx(2.079442, abs=1e-6), 2]  # log 2 + log 4: without p


def test_dft_of_what_cannot_be_is_0():
    """p log p → 0; and a gradient that is finite."""
    logps = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    loss, _ = dft_loss(logps, torch.tensor([[0.5, 0.5]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.183940, abs=1e-6)  # ½ · e^−1
    assert logps.grad[0].tolist() == pytest.approx([0.0, -0.183940], abs=1e-6)


def test_dft_split_padding_and_purity():
    logps = torch.tensor([[-1.0, math.nan, -0.5], [-2.0, -0.1, math.inf]], requires_grad=True)
    weights = torch.tensor([[0.25, 0.0, 0.25], [0.25, 0.25, 0.0]])
    loss, metrics = dft_loss(logps, weights)
    parts = sum(dft_loss(logps[i : i + 1], weights[i : i + 1])[0] for i in (0, 1))
    assert parts.item() == pytest.approx(loss.item(), abs=1e-6) and metrics["nll"][1].item() == 4
    loss.backward()
    assert torch.isfinite(logps.grad).all() and logps.grad[0, 1] == logps.grad[1, 2] == 0
    assert dft_loss(logps.detach().bfloat16(), weights)[0].dtype == torch.float32
    with pytest.raises(AssertionError, match=r"\[B, T\]"):
        dft_loss(torch.zeros(3), torch.zeros(3))
