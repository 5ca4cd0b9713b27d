"""The keys of PPO, and what PPO and GRPO share: sizes that have to fit, and what cannot be together."""

import pytest
from kit import small_config

from posttrain.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo__kl_coef": 0.1, "ppo__kl_loss_coef": 0.1}, "the KL would be paid twice"),
        ({"ppo__reward": None}, "give either reward .* not neither"),
        ({"ppo__reward_model": "x"}, "give either reward .* not both"),
        ({"ppo__truncated": "bootstrap", "ppo__truncation_penalty": -1.0}, "would count the ending twice"),
        ({"ppo__kl_coef": 0.0, "ppo__kl_target": 0.1}, "kl_target needs a kl_coef"),
        ({"model__adapter": "lora", "model__adapter_path": "x"}, "critic: separate starts from model.name"),
        ({"ppo__prompts_per_step": 7}, "does not divide the 7 answers"),
        ({"training__batch_size": 5}, "= 4 per optimiser step"),
        ({"ppo__top_p": 0.9}, "top_p.*is refused in RL"),
    ],
)
def test_ppo_keys_that_cannot_be(tmp_path, changes, message):
    small_config("ppo", "x", tmp_path)
    with pytest.raises(UserError, match=message):
        small_config("ppo", "x", tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo__truncated": "bootstrap"},
        {"ppo__truncation_penalty": -1.0},
        {"ppo__kl_target": 0.1},
        {"ppo__kl_coef": 0.0, "ppo__kl_loss_coef": 0.1, "ppo__kl_target": 0.1},
        {"ppo__critic": "shared", "model__adapter": "lora", "model__adapter_path": "x"},
        {"ppo__reward": None, "ppo__reward_model": "x"},
    ],
)
def test_keys_that_go_together(tmp_path, changes):
    made = small_config("ppo", "x", tmp_path, **changes)
    for key, value in changes.items():
        group, name = key.split("__")
        assert getattr(getattr(made, group), name) == value, key


def test_sizes_that_fit(tmp_path):
    # 4 prompts x 4 answers / 2 minibatches
    grpo = {"grpo__prompts_per_step": 4, "grpo__minibatches": 2, "training__batch_size": 8}
    assert small_config("grpo", "x", tmp_path, **grpo).training.batch_size == 8
    ppo = small_config("ppo", "x", tmp_path, training__batch_size=4)  # 8 answers / 2 minibatches
    assert ppo.training.batch_size == 4 and ppo.ppo.group_size == 1
