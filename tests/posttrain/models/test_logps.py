"""Several rows in one, each seeing only itself: the same log-probs, loss and gradients as apart."""

import pytest
import torch
from kit import SIZES, tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain.errors import UserError
from posttrain.models import CompletionLogps, no_dropout
from posttrain.models.logps import Head
from posttrain.tokens.batch import Batch, Example, Packed, collate, collate_packed
from posttrain.tokens.shared import Sharing

G = torch.Generator().manual_seed(3)
A, B, C = (
    Example.of(ids[:3], ids[3:]) for ids in (torch.randint(20, 400, (n,), generator=G).tolist() for n in (9, 14, 6))
)


def policy_of(kind):
    made = tiny_model(kind)
    no_dropout(made)
    policy = CompletionLogps(made.train())
    policy.find_a_way_to_pack()
    return policy


def loss_and_gradients(policy, batch, total):
    policy.zero_grad()
    loss, _ = completion_cross_entropy(policy(batch)[0], token_weights(batch.active, "token", total=total))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("kind", SIZES)
def test_packed_is_apart(kind):
    """loss(pack(a, b)) = (n_a · loss(a) + n_b · loss(b)) / (n_a + n_b), and so the gradients."""
    policy = policy_of(kind)
    assert policy.needs_block_mask == (kind == "opt")
    n = [e.num_active for e in (A, B, C)]  # 6, 11, 3
    apart = [loss_and_gradients(policy, collate([e], 0), e.num_active) for e in (A, B, C)]
    loss, gradients = loss_and_gradients(policy, collate_packed([Packed((A, B)), Packed((C,))], 0), sum(n))
    assert loss == pytest.approx(sum(k * x for k, (x, _) in zip(n, apart, strict=True)) / 20, abs=1e-5)
    expected = sum(k * g for k, (_, g) in zip(n, apart, strict=True)) / 20
    torch.testing.assert_close(gradients, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SIZES)
def test_editing_a_leaves_b_unchanged(kind):
    policy = policy_of(kind)
    edited = Example([7, *A.input_ids[1:-1], 8], A.completion_mask)
    logps = [policy(collate_packed([Packed((first, B))], 0))[0][0, len(A) :] for first in (A, edited)]
    assert torch.equal(*logps) and logps[0].abs().sum() > 0


def test_gradient_checkpointing_and_bf16_keep_them_apart():
    policy = policy_of("llama")
    batch = collate_packed([Packed((A, B))], 0)
    plain = loss_and_gradients(policy, batch, 17)
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    again = loss_and_gradients(policy, batch, 17)
    assert again[0] == plain[0]
    torch.testing.assert_close(again[1], plain[1], atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert policy(batch)[0].sum().item() == pytest.approx(policy(collate([A, B], 0))[0].sum().item(), rel=0.01)


def test_an_architecture_that_leaks_is_refused(monkeypatch):
    made = tiny_model("llama")
    real = made.forward

    def leaky(*arguments, position_ids=None, attention_mask=None, **more):  # as if it knew of no borders
        return real(*arguments, position_ids=torch.arange(position_ids.shape[1])[None], **more)

    policy = CompletionLogps(made)
    monkeypatch.setattr(made, "forward", leaky)
    with pytest.raises(
        UserError, match=r"packed rows see each other, or lose their window; set training.packing: false"
    ):
        policy.find_a_way_to_pack()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "qwen2"])
def test_padding_changes_no_log_prob(kind):
    """Alone, padded on the left by 7 and on the right by 7: the same to 1e-5, on absolute and rotary positions."""
    m = tiny_model(kind)
    no_dropout(m)
    policy = CompletionLogps(m.train())
    ids = torch.randint(0, 400, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    example = Example.of(ids[:4], ids[4:])
    alone = policy(collate([example], 0))[0][0, 3:]
    longer = Example.of(ids[:4], ids[4:] + ids[:7])
    right = policy(collate([example, longer], 0))[0][0, 3:11]
    mask = torch.tensor([[False] * 7 + [True] * 12])
    left = Batch(
        torch.tensor([[0] * 7 + ids]),
        mask,
        (mask.cumsum(-1) - 1).clamp(min=0),
        torch.tensor([[False] * 11 + [True] * 8]),
    )
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy(left)[0][0, 10:], alone, atol=1e-5, rtol=0)


def test_a_soft_cap_is_found_out_while_the_logits_are_small():
    made = tiny_model("gemma2", final_logit_softcapping=30.0, initializer_range=0.001)
    assert CompletionLogps(made).head_form == Head(1.0, 30.0)
    made.config.final_logit_softcapping, real = None, made.forward  # capped by something that no key tells of

    def capped(**read):
        out = real(**read)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    made.forward = capped
    assert CompletionLogps(made).head_form is None


@pytest.mark.parametrize(
    ("kind", "form"),
    [("llama", Head()), ("gemma2", Head(1.0, 2.0)), ("granite", Head(1 / 3)), ("cohere", Head(0.3))],
)
def test_what_a_model_does_to_its_logits_is_found(kind, form):
    more = {"granite": {"logits_scaling": 3.0}, "cohere": {"logit_scale": 0.3}}
    if kind in more:
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](vocab_size=411, pad_token_id=None, **SIZES["qwen2"] | more[kind])
        made = AutoModelForCausalLM.from_config(config)
    else:
        made = tiny_model(kind)
    assert CompletionLogps(made).head_form == form


def test_what_is_done_to_logits_otherwise_takes_the_plain_path():
    made = tiny_model("llama")
    real = made.forward

    def shifted(**read):
        out = real(**read)
        out.logits = out.logits - 0.01 * out.logits.square()
        return out

    made.forward = shifted
    policy, batch = CompletionLogps(made), collate([A, B], 0)
    assert policy.head_form is None and policy.share_prompts() is None
    logits = made(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    expected = torch.where(batch.active, token_logps(logits, batch.input_ids), 0.0)
    torch.testing.assert_close(policy(batch)[0], expected, atol=1e-5, rtol=0)
    always = Sharing(True)
    always.on = True
    torch.testing.assert_close(policy(collate([A, B], 0, always))[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "opt", "gemma2"])
def test_the_module_gives_the_models_own_log_probs(kind):
    m = tiny_model(kind).eval()
    policy = CompletionLogps(m)
    assert policy.head_form == (Head(1.0, 2.0) if kind == "gemma2" else Head())
    ids = torch.randint(0, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = collate([Example.of(row[:3], row[3:]) for row in ids.tolist()], 0)
    logps, entropy = policy(batch, 0.7)
    expected = torch.where(batch.active, token_logps(m(input_ids=ids).logits, ids, temperature=0.7), 0.0)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)
    assert (entropy[batch.active] > 0).all() and (entropy[~batch.active] == 0).all()
