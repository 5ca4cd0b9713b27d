import math

import pytest
import torch

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
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
