import math

import pytest
import torch

from losses.mismatch import masked_importance_weights, truncated_importance_weights

SAMPLER = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, -1.0]])
RATIOS = torch.tensor([[0.5, 1.0, 3.0], [2.0, 0.25, 1.0]])
TRAINER = SAMPLER + RATIOS.log()
ALL = torch.ones(2, 3, dtype=torch.bool)


def assert_near(weights, expected):
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-6, rtol=0)


def test_pencil_values_truncated():
    assert_near(truncated_importance_weights(TRAINER, SAMPLER, ALL), [[0.5, 1.0, 2.0], [2.0, 0.25, 1.0]])
    assert_near(truncated_importance_weights(TRAINER, SAMPLER, ALL, cap=0.75), [[0.5, 0.75, 0.75], [0.75, 0.25, 0.75]])


def test_pencil_values_masked():
    assert_near(masked_importance_weights(TRAINER, SAMPLER, ALL), [[0.5, 1.0, 3.0], [2.0, 0.0, 1.0]])  # 0.25 < 0.5
    assert_near(
        masked_importance_weights(TRAINER, SAMPLER, ALL, low=0.2, high=1.5), [[0.5, 1.0, 0.0], [0.0, 0.25, 1.0]]
    )
    # the products: 0.5 · 1 · 3 = 1.5 and 2 · 0.25 · 1 = 0.5; their third roots: 1.144714 and 0.793701
    sequence = masked_importance_weights(TRAINER, SAMPLER, ALL, level="sequence", low=0.6)
    assert_near(sequence, [[1.5] * 3, [0.0] * 3])
    assert_near(masked_importance_weights(TRAINER, SAMPLER, ALL, level="geometric"), [[1.144714] * 3, [0.793701] * 3])
    assert_near(
        masked_importance_weights(TRAINER, SAMPLER, ALL, level="geometric", high=1.1), [[0.0] * 3, [0.793701] * 3]
    )


def test_the_ends_of_the_range_are_inside():
    same = torch.full((1, 1), -1.0)
    one = torch.ones(1, 1, dtype=torch.bool)
    assert masked_importance_weights(same, same, one, low=1.0, high=1.0).tolist() == [[1.0]]


def test_only_active_tokens_count():
    active = torch.tensor([[True, False, True], [False, False, False]])
    # 0.5 · 3 = 1.5, its square root 1.224745
    assert_near(masked_importance_weights(TRAINER, SAMPLER, active, level="sequence"), [[1.5, 0.0, 1.5], [0.0] * 3])
    assert_near(
        masked_importance_weights(TRAINER, SAMPLER, active, level="geometric"), [[1.224745, 0.0, 1.224745], [0.0] * 3]
    )
    assert_near(truncated_importance_weights(TRAINER, SAMPLER, active), [[0.5, 0.0, 2.0], [0.0] * 3])


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_rows_do_not_mix(level):
    whole = masked_importance_weights(TRAINER, SAMPLER, ALL, level=level)
    rows = [masked_importance_weights(TRAINER[i : i + 1], SAMPLER[i : i + 1], ALL[:1], level=level) for i in range(2)]
    assert torch.equal(whole, torch.cat(rows))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_in_padding_changes_nothing(garbage):
    active = torch.tensor([[True, False]])
    trainer, sampler = torch.tensor([[-1.0, garbage]]), torch.tensor([[-1.0, garbage]])
    assert truncated_importance_weights(trainer, sampler, active).tolist() == [[1.0, 0.0]]
    for level in ("token", "sequence", "geometric"):
        assert masked_importance_weights(trainer, sampler, active, level=level).tolist() == [[1.0, 0.0]]


def test_purity_type_and_no_gradient():
    trainer = TRAINER.clone().requires_grad_()
    for weights in (
        truncated_importance_weights(trainer, SAMPLER, ALL),
        masked_importance_weights(trainer, SAMPLER, ALL, level="sequence"),
    ):
        assert not weights.requires_grad
    assert torch.equal(trainer.detach(), TRAINER)
    assert truncated_importance_weights(TRAINER.bfloat16(), SAMPLER.bfloat16(), ALL).dtype == torch.float32


def test_the_same_model_twice_weighs_one():
    assert torch.equal(truncated_importance_weights(SAMPLER, SAMPLER, ALL), torch.ones(2, 3))
    for level in ("token", "sequence", "geometric"):
        assert torch.equal(masked_importance_weights(SAMPLER, SAMPLER, ALL, level=level), torch.ones(2, 3))


def test_a_product_of_many_ratios_leaves_any_range_where_their_mean_does_not():
    # 200 tokens, each off by 0.02 nats: e^4 = 54.6 against e^0.02
    sampler, active = torch.full((1, 200), -1.0), torch.ones(1, 200, dtype=torch.bool)
    assert masked_importance_weights(sampler + 0.02, sampler, active, level="sequence").sum() == 0
    mean = masked_importance_weights(sampler + 0.02, sampler, active, level="geometric")
    torch.testing.assert_close(mean, torch.full((1, 200), math.exp(0.02)), atol=1e-5, rtol=0)


def test_refusals():
    with pytest.raises(ValueError, match="cap must be above 0"):
        truncated_importance_weights(TRAINER, SAMPLER, ALL, cap=0.0)
    for low, high in ((-0.1, 2.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="range of ratios"):
            masked_importance_weights(TRAINER, SAMPLER, ALL, low=low, high=high)
    with pytest.raises(ValueError, match="'answer'"):
        masked_importance_weights(TRAINER, SAMPLER, ALL, level="answer")
    with pytest.raises(AssertionError, match="bool"):
        truncated_importance_weights(TRAINER, SAMPLER, ALL.float())
    with pytest.raises(AssertionError, match="same shape"):
        truncated_importance_weights(TRAINER, SAMPLER[:1], ALL)
