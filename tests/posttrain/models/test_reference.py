"""The frozen reference is the policy as it was at step 0, in each of its forms, while the policy moves away."""

from types import SimpleNamespace

import pytest
import torch
from kit import sentencepiece_tokenizer, tiny_folder, whole_models

from posttrain import models
from posttrain.config.keys import Lora, ModelWithReference
from posttrain.errors import UserError
from posttrain.models import CompletionLogps, lora
from posttrain.models.reference import AdapterAtStepZero, AdapterOff, frozen_reference
from posttrain.tokens.batch import Example, collate

BATCH = collate([Example.of([20, 21], [30, 31, 32]), Example.of([22], [40])], 0)


def run_in(compute):
    return SimpleNamespace(compute=compute, parallel=whole_models())


def policy_of(llama, *, fresh=False, adapter=True):
    model = models.load(llama)[0]
    if adapter:
        torch.manual_seed(0)
        model = lora.add(model, Lora(rank=4), llama)
        if not fresh:  # as if it had been trained before
            move(model, seed=1)
    models.no_dropout(model)
    return CompletionLogps(model.train())


def move(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logps(module):
    return module(BATCH)[0]


@pytest.mark.parametrize(
    ("policy", "config", "kind"),
    [
        ({"adapter": False}, {}, CompletionLogps),
        ({"fresh": True}, {"adapter": "lora"}, AdapterOff),
        ({"fresh": True}, {"adapter": "lora", "reference": "copy"}, AdapterAtStepZero),
        ({}, {"adapter": "lora", "adapter_path": "x"}, AdapterAtStepZero),
    ],
)
def test_it_stays_where_the_policy_was(llama, policy, config, kind):
    policy = policy_of(llama, **policy)
    start = logps(policy)
    reference = frozen_reference(policy, ModelWithReference(name=llama, **config), run_in(torch.float32))
    assert type(reference) is kind and torch.equal(logps(reference), start)
    move(policy, seed=2)
    torch.testing.assert_close(logps(reference), start, atol=1e-6, rtol=0)
    assert (logps(policy) - start).abs().max() > 0.1
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    # laid over the policy, it leaves the policy's own weights where they are
    assert torch.equal(logps(policy), logps(policy)) and policy.model.training


def test_at_another_temperature_it_answers_like_the_policy(llama):
    policy = policy_of(llama)
    reference = frozen_reference(
        policy, ModelWithReference(name=llama, adapter="lora", reference="copy"), run_in(torch.float32)
    )
    with torch.no_grad():
        assert torch.equal(reference(BATCH, 0.5)[0], policy(BATCH, 0.5)[0])
        assert not torch.equal(reference(BATCH, 0.5)[0], reference(BATCH)[0])


def test_a_copy_keeps_float32_and_another_model_is_read_in_the_compute_type(tmp_path, llama):
    policy = policy_of(llama, adapter=False)
    copied = frozen_reference(policy, ModelWithReference(name=llama), run_in(torch.bfloat16))
    assert {p.dtype for p in copied.parameters()} == {torch.float32}
    other = tiny_folder(tmp_path / "other", seed=5)
    named = frozen_reference(policy, ModelWithReference(name=llama, reference=other), run_in(torch.bfloat16))
    assert {p.dtype for p in named.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in named.parameters())
    assert (logps(named) - logps(policy)).abs().max() > 0.1


def test_another_model_answers_without_dropout(tmp_path):
    name = tiny_folder(tmp_path / "m", "gpt2")  # 0.1 everywhere
    policy = CompletionLogps(models.load(name)[0].train())
    reference = frozen_reference(policy, ModelWithReference(name=name, reference=name), run_in(torch.float32))
    assert torch.equal(logps(reference), logps(reference)) and reference.model.training
    assert not torch.equal(logps(policy), logps(policy))


def test_another_vocabulary_is_refused(tmp_path, llama):
    other = tiny_folder(tmp_path / "other", tokenizer=sentencepiece_tokenizer())
    with pytest.raises(UserError, match="has another vocabulary than the policy"):
        frozen_reference(
            policy_of(llama, adapter=False), ModelWithReference(name=llama, reference=other), run_in(torch.float32)
        )
    with pytest.raises(UserError, match=r"^model.reference 'no/such-model': cannot be loaded"):
        frozen_reference(
            policy_of(llama), ModelWithReference(name=llama, reference="no/such-model"), run_in(torch.float32)
        )
