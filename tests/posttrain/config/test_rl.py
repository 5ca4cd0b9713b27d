"""The keys of GRPO and PPO: sizes that have to fit, and what cannot be together."""

import pytest
from kit import small_config

from posttrain.config.rl import GrpoConfig
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
    ("changes", "message"),
    [
        ({"grpo__group_size": 1}, "grpo.group_size: input should be greater than or equal to 2, got 1"),
        ({"grpo__kl_estimator": "k1"}, "'k3_is', 'k3' or 'k2', got 'k1'"),
        ({"grpo__minibatches": 3}, "does not divide the 64 completions"),
        ({"training__batch_size": 7}, "training.batch_size = 7, but grpo gives 8 prompts x 8 answers / 1 minibatches = 64"),
        ({"grpo__reward": ["answer", "a:b"], "grpo__reward_weights": [1]}, "1 entries for 2 reward functions"),
        ({"grpo__reward": []}, "reward names no reward function"),
        ({"grpo__advantage": "leave_one_out"}, "set advantage_scale: none as well"),
        ({"grpo__reward": "answer", "grpo__reward_model": "x"}, "not both"),
    ],
)  # fmt: skip
def test_grpo_keys_that_cannot_be(tmp_path, changes, message):
    fixed = {"grpo__prompts_per_step": 8, "grpo__group_size": 8}
    small_config("grpo", "x", tmp_path, **fixed)
    with pytest.raises(UserError, match=message):
        small_config("grpo", "x", tmp_path, **fixed | changes)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ppo", {"ppo__truncated": "bootstrap"}),
        ("ppo", {"ppo__truncation_penalty": -1.0}),
        ("ppo", {"ppo__kl_target": 0.1}),
        ("ppo", {"ppo__kl_coef": 0.0, "ppo__kl_loss_coef": 0.1, "ppo__kl_target": 0.1}),
        ("ppo", {"ppo__critic": "shared", "model__adapter": "lora", "model__adapter_path": "x"}),
        ("ppo", {"ppo__reward": None, "ppo__reward_model": "x"}),
        ("grpo", {"grpo__advantage": "leave_one_out", "grpo__advantage_scale": "none"}),
        ("grpo", {"grpo__reward": ["answer", "a:b"], "grpo__reward_weights": [1, 0.5]}),
    ],
)
def test_keys_that_go_together(tmp_path, method, changes):
    made = small_config(method, "x", tmp_path, **changes)
    for key, value in changes.items():
        group, name = key.split("__")
        assert getattr(getattr(made, group), name) == value, key


def test_sizes_that_fit(tmp_path):
    # 4 prompts x 4 answers / 2 minibatches
    grpo = {"grpo__prompts_per_step": 4, "grpo__minibatches": 2, "training__batch_size": 8}
    assert small_config("grpo", "x", tmp_path, **grpo).training.batch_size == 8
    ppo = small_config("ppo", "x", tmp_path, training__batch_size=4)  # 8 answers / 2 minibatches
    assert ppo.training.batch_size == 4 and ppo.ppo.group_size == 1


def test_a_reward_model_takes_the_place_of_the_default_reward():
    model = {"model": {"name": "x"}, "data": {"name": "y"}}
    assert GrpoConfig(**model).grpo.reward == "answer"
    learned = GrpoConfig(**model, grpo={"reward_model": "folder"}).grpo
    assert (learned.reward, learned.reward_model) == (None, "folder")
