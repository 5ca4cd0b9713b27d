"""Several rows in one, each seeing only itself: the same log-probs, loss and gradients as apart."""

import pytest
import torch
from kit import SIZES, tiny_model

from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain.errors import UserError
from posttrain.models import CompletionLogps, no_dropout
from posttrain.tokens.batch import Example, Packed, block_mask, collate, collate_packed, pack

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


def test_collate_packed():
    batch = collate_packed(
        [Packed((Example.of([5, 6], [7]), Example([8, 9], [True, True]))), Packed((Example.of([1], [2]),))], pad_id=0
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    # 8 begins a text that is trained whole: nothing predicts it, alone or packed
    assert batch.completion_mask.tolist() == [[False, False, True, False, True], [False, True, False, False, False]]
    assert batch.attention_mask is None


def test_block_mask_by_hand():
    # positions 0 1 | 0 1: token 2 sees itself, token 3 sees 2 and 3
    may_look = block_mask(torch.tensor([[0, 1, 0, 1]]), torch.float32)[0, 0] == 0
    assert may_look.tolist() == [[True, False, False, False], [True, True, False, False],
                                 [False, False, True, False], [False, False, True, True]]  # fmt: skip


def test_pack_fills_rows_and_splits_nothing():
    packs = pack([A, B, C, A], 20)  # 14 + 6, then 9 + 9
    assert [[len(e) for e in p.examples] for p in packs] == [[14, 6], [9, 9]]
    assert [len(e) for p in pack([B], 5) for e in p.examples] == [14]  # longer than a row: alone


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
    with pytest.raises(UserError, match=r"packed rows see each other; set training.packing: false"):
        policy.find_a_way_to_pack()
