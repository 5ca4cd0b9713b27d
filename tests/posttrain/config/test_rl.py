"""The keys of GRPO and PPO: sizes that have to fit, and what cannot be together."""

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
def test_keys_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        small_config("ppo", "x", tmp_path, **changes)
