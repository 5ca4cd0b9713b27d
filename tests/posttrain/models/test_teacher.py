"""The two sides of distillation, as modules: what the plain loss gives on whole logits."""

import pytest
import torch
from kit import tiny_model

from losses.distill import distillation_loss
from losses.weights import token_weights
from posttrain.models import teacher as teachers
from posttrain.models.logps import Head
from posttrain.tokens.batch import Example, collate


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # gemma2 caps its logits: the plain path
@pytest.mark.parametrize("wider", [0, 5])
def test_the_module_gives_what_the_plain_loss_gives(kind, wider):
    """wider: a teacher whose table is padded by so many entries, which no token has."""
    model, theirs = tiny_model(kind), tiny_model("llama", vocab_size=411 + wider, seed=4)
    batch = collate([Example.of([3, 4, 5], [6, 7]), Example.of([8], [9, 10, 11, 12])], 0)
    weights = token_weights(batch.active)
    student, teacher = teachers.CompletionDivergence(model), teachers.CompletionLogits(theirs.eval())
    assert (student.head_form == Head()) == (kind == "llama")
    loss, metrics = student(batch, teacher(batch), weights, 0.3, 0.7)
    ids = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits = model(**ids).logits
    expected, _ = distillation_loss(logits, theirs(**ids).logits[..., :411], weights, mixture=0.3, temperature=0.7)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and metrics["divergence"][1].item() == 6
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_muted_batch_gives_0_with_a_graph():
    model = tiny_model()
    batch = collate([Example.of([3, 4], [5, 6]).muted()], 0)
    student, teacher = teachers.CompletionDivergence(model), teachers.CompletionLogits(tiny_model(seed=4).eval())
    loss, metrics = student(batch, teacher(batch), token_weights(batch.active), 0.5, 1.0)
    loss.backward()
    assert loss.item() == 0 and metrics["divergence"][1].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
