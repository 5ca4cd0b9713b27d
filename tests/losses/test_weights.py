import pytest
import torch

from losses.weights import step_total, token_weights

# two answers, of 2 and of 4 tokens
ACTIVE = torch.tensor([[True, True, False, False], [True, True, True, True]])


def test_pencil_values():
    # token: 1 / 6 tokens.  sequence: 1 / (2 rows · 2 tokens), 1 / (2 · 4).  constant: 1 / (2 rows · L_max 8)
    assert token_weights(ACTIVE, "token")[:, 0].tolist() == pytest.approx([1 / 6, 1 / 6], abs=1e-7)
    assert token_weights(ACTIVE, "sequence")[:, 0].tolist() == pytest.approx([0.25, 0.125], abs=1e-7)
    assert token_weights(ACTIVE, "constant", total=16)[:, 0].tolist() == pytest.approx([0.0625, 0.0625], abs=1e-7)
    for how, total in (("token", None), ("sequence", None), ("constant", 16)):
        assert (token_weights(ACTIVE, how, total=total)[~ACTIVE] == 0).all()


def test_the_total_of_a_step():
    # answers of 2, 0 and 4 tokens, L = 8: 6 tokens, 2 rows that have one, 2 · 8; a generator will do
    assert [step_total([2, 0, 4], how, longest=8) for how in ("token", "sequence", "constant")] == [6, 2, 16]
    assert step_total((n for n in [3]), "sequence") == 1 and step_total([], "token") == 0
    for how, longest in (("tokens", 8), ("constant", None)):
        with pytest.raises(ValueError, match="which needs longest"):
            step_total([1], how, longest=longest)


def test_an_answer_of_one_token():
    # two rows, of 1 and of 2 tokens: 1 / (2 · 1) and 1 / (2 · 2)
    active = torch.tensor([[True, False], [True, True]])
    assert token_weights(active, "sequence")[:, 0].tolist() == [0.5, 0.25]


def test_weighted_sum_of_the_three_conventions():
    # lengths 2 (A = +1) and 4 (A = −1), value per token = A:  sequence ½ − ½ = 0,  token (2 − 4) / 6,  constant (2 − 4) / 16
    value = torch.tensor([[1.0], [-1.0]]).expand(2, 4)
    sums = [
        (token_weights(ACTIVE, how, total=t) * value).sum().item()
        for how, t in (("sequence", None), ("token", None), ("constant", 16))
    ]
    assert sums == pytest.approx([0.0, -1 / 3, -0.125], abs=1e-7)


@pytest.mark.parametrize(("how", "total"), [("token", 6), ("sequence", 2), ("constant", 16)])
def test_micro_batches_add_up_to_the_whole_step(how, total):
    whole = token_weights(ACTIVE, how, total=total)
    parts = torch.cat([token_weights(ACTIVE[i : i + 1], how, total=total) for i in range(2)])
    assert torch.equal(whole, parts)
    assert how == "constant" or whole.sum().item() == pytest.approx(1.0)


def test_the_default_total_of_sequence_counts_only_rows_with_something_to_learn():
    active = torch.cat([ACTIVE, torch.zeros(1, 4, dtype=torch.bool)])
    assert token_weights(active, "sequence").sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_nothing_active_gives_all_zeros(how):
    for total in (None, 0, 5) if how != "constant" else (0, 5):
        weights = token_weights(torch.zeros(2, 3, dtype=torch.bool), how, total=total)
        assert weights.tolist() == [[0.0] * 3] * 2


def test_total_may_be_a_tensor():
    assert torch.equal(token_weights(ACTIVE, "token", total=torch.tensor(12)), token_weights(ACTIVE, "token", total=12))


def test_refusals():
    with pytest.raises(ValueError, match="constant"):
        token_weights(ACTIVE, "constant")
    with pytest.raises(ValueError, match="'mean'"):
        token_weights(ACTIVE, "mean")
    with pytest.raises(ValueError, match="above 0"):
        token_weights(ACTIVE, "token", total=0)
    with pytest.raises(AssertionError, match="bool"):
        token_weights(ACTIVE.float())
