import pytest
import torch

from losses.preference import LOSSES, preference_loss

FOUR = [torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -11.0)]  # r_w = 1, r_l = −1, h = 2
# the pencil values of each loss's own test, at β = 0.1
PENCIL = {
    "sigmoid": ({}, 0.598139), "ipo": ({}, 9.0), "robust": ({"label_smoothing": 0.1}, 0.573139), "dpop": ({"penalty": 5.0}, 0.598139),
    "apo_zero": ({}, 0.950042), "apo_down": ({}, 0.975145),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_each_name_is_its_loss_with_its_keys(name):
    keys, value = PENCIL[name]
    assert preference_loss(name, beta=0.1, **keys)(*FOUR)[0].item() == pytest.approx(value, abs=1e-5)
    assert preference_loss(name, beta=0.1, **keys)(*FOUR, weights=torch.tensor([2.0]))[0].item() == pytest.approx(
        2 * value, abs=1e-5
    )


def test_smoothed_labels_and_a_penalty_reach_their_losses():
    smoothed = preference_loss("sigmoid", beta=0.1, label_smoothing=0.1)(*FOUR)[0].item()
    assert smoothed == pytest.approx(0.618139, abs=1e-6)  # 0.9 · 0.598139 + 0.1 · 0.798139
    fallen = [torch.tensor([x]) for x in (-12.0, -15.0, -11.0, -11.0)]
    assert preference_loss("dpop", beta=0.1, penalty=5.0)(*fallen)[0].item() == pytest.approx(0.798139, abs=1e-6)


def test_a_key_that_the_loss_does_not_read_is_refused():
    for name, keys in (
        ("ipo", {"label_smoothing": 0.1}),
        ("sigmoid", {"penalty": 1.0}),
        ("apo_zero", {"penalty": 1.0}),
    ):
        with pytest.raises(TypeError, match=next(iter(keys))):
            preference_loss(name, beta=0.1, **keys)(*FOUR)
    with pytest.raises(KeyError):
        preference_loss("hinge", beta=0.1)
