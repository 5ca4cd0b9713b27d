import pytest
import torch
from kit import tiny_model

from losses.logprobs import token_logps
from posttrain.models import CompletionLogps, no_dropout
from posttrain.tokens.batch import Batch, Example, collate, pad_values


def test_collate():
    batch = collate([Example.of([5, 6], [7]), Example.of([5], [8, 9, 0])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [5, 8, 9, 0]]
    assert batch.attention_mask.tolist() == [
        [True, True, True, False],
        [True] * 4,
    ]  # the last 0 of row 2 is a token: lengths decide
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.completion_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch.active.tolist() == [[False, True, False], [True, True, True]]


def test_num_active_does_not_count_a_first_token_that_nothing_predicts():
    assert Example([1, 2, 3], [True, True, True]).num_active == 2
    assert Example.of([1], [2]).muted().num_active == 0


def test_pad_values_lays_numbers_under_their_tokens():
    examples = [Example.of([5, 6], [7]), Example.of([5], [8, 9])]
    out = pad_values([torch.tensor([-1.0]), torch.tensor([-2.0, -3.0])], examples, 3)
    assert out.tolist() == [[0.0, -1.0], [-2.0, -3.0]]


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
    assert not CompletionLogps(tiny_model("gemma2", final_logit_softcapping=30.0, initializer_range=0.001)).chunked


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "opt", "gemma2"])
def test_the_module_gives_the_models_own_log_probs(kind):
    m = tiny_model(kind).eval()
    policy = CompletionLogps(m)
    assert policy.chunked == (kind != "gemma2")  # soft-capped logits take the plain path, found out by the probe
    ids = torch.randint(0, 400, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = collate([Example.of(row[:3], row[3:]) for row in ids.tolist()], 0)
    logps, entropy = policy(batch, 0.7)
    expected = torch.where(batch.active, token_logps(m(input_ids=ids).logits, ids, temperature=0.7), 0.0)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)
    assert (entropy[batch.active] > 0).all() and (entropy[~batch.active] == 0).all()
