"""The keys of GRPO and its variants: what they are by default, and what cannot be together."""

import pytest
from kit import small_config

from posttrain import ROOT
from posttrain.config import load
from posttrain.config.grpo import GrpoConfig
from posttrain.errors import UserError

MAX_RL = {"grpo__advantage": "max_rl", "grpo__advantage_scale": "none"}
DYNAMIC = {"grpo__dynamic_sampling": True}
GSPO = {"grpo__loss": "gspo", "grpo__length_weighting": "sequence"}
TEACHER = {"grpo__advantage": "teacher", "grpo__teacher": "x", "grpo__reward": None, "grpo__advantage_scale": "none"}
HELD_OUT = {"grpo__watch": "answer", "data__validation_split": 0.2, "training__eval_every": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo__group_size": 0}, "grpo.group_size: input should be greater than or equal to 1, got 0"),
        ({"grpo__group_size": 1}, "group_size = 1: one answer has nothing to be compared with"),
        ({"grpo__teacher": "x"}, "teacher = x is for advantage: teacher"),
        (TEACHER | {"grpo__teacher": None}, "advantage: teacher needs a teacher"),
        (TEACHER | {"grpo__reward": "answer"}, "learns from the teacher alone, and not from reward = answer: set reward: null"),
        (TEACHER | {"grpo__reward_model": "y"}, "not from reward_model = y: set reward_model: null"),
        (TEACHER | {"grpo__reward_weights": [1.0]}, "1 entries for 0 reward functions"),
        (TEACHER | {"grpo__advantage_scale": "std"}, "teacher is not divided by .* set advantage_scale: none as well"),
        (TEACHER | DYNAMIC, "there are no dead groups for dynamic_sampling to replace"),
        (TEACHER | {"grpo__overlong_cache": 4}, "overlong_cache is added to a reward, and advantage: teacher has none"),
        (TEACHER | GSPO, "gspo has one ratio and one advantage per answer, and advantage: teacher has one per token"),
        (TEACHER | {"data__validation_split": 0.2, "training__eval_every": 1}, "no reward to measure on the prompts .* give grpo.watch"),
        (TEACHER | HELD_OUT | {"training__best_metric": "reward_held_out"}, "it is watched/answer_held_out"),
        ({"grpo__kl_estimator": "k1"}, "'k3_is', 'k3' or 'k2', got 'k1'"),
        ({"grpo__minibatches": 3}, "does not divide the 64 completions"),
        ({"training__batch_size": 7}, "training.batch_size = 7, but grpo gives 8 prompts x 8 answers / 1 minibatches = 64"),
        ({"grpo__reward": ["answer", "a:b"], "grpo__reward_weights": [1]}, "1 entries for 2 reward functions"),
        ({"grpo__reward": []}, "reward names no reward function"),
        ({"grpo__advantage": "leave_one_out"}, "set advantage_scale: none as well"),
        ({"grpo__reward": "answer", "grpo__reward_model": "x"}, "not both"),
        ({"grpo__loss": "gspo"}, "gives every answer one vote, and length_weighting: token does not: set length_weighting: sequence"),
        ({"grpo__loss": "cispo"}, "clip_low = 0.2: loss: cispo has no lower bound"),  # the file says 0.2
        ({"grpo__loss": "ppo"}, "'grpo', 'gspo' or 'cispo', got 'ppo'"),
        ({"grpo__advantage": "max_rl"}, "max_rl is not divided by a group's .* set advantage_scale: none as well"),
        ({"grpo__advantage": "batch"}, "batch is not divided by a group's .* set advantage_scale: none as well"),
        (MAX_RL | {"grpo__reward": None, "grpo__reward_model": "x"}, "max_rl is for rewards of 0 and 1, and the scores of reward_model"),
        (MAX_RL | {"grpo__overlong_cache": 4}, "overlong_cache makes graded ones of them"),
        (DYNAMIC | {"grpo__reward": None, "grpo__reward_model": "x"}, "dynamic_sampling .* needs a verifiable reward"),
        (DYNAMIC | {"training__max_steps": None}, "dynamic_sampling needs training.max_steps"),
        ({"grpo__max_resamples": 3}, "max_resamples = 3 is for dynamic_sampling: true"),
        (DYNAMIC | {"grpo__max_resamples": 0}, "max_resamples: input should be greater than or equal to 1"),
        ({"grpo__overlong_cache": 9}, "overlong_cache = 9 is more than the max_new_tokens = 8"),
        ({"grpo__importance_cap": 2}, "importance_cap = 2.0 is for importance_weights: truncated"),
        ({"grpo__importance_weights": "masked", "grpo__importance_cap": 2}, "importance_cap = 2.0 is for importance_weights: truncated"),
        ({"grpo__importance_weights": "truncated", "grpo__importance_level": "token"}, "importance_level = token is for importance_weights: masked"),
        ({"grpo__importance_weights": "masked", "grpo__importance_low": 3, "grpo__importance_high": 2}, "importance_low = 3 is above importance_high = 2"),
        (GSPO | {"grpo__importance_weights": "truncated"}, "gspo .* importance_weights: truncated weighs token by token"),
        (GSPO | {"grpo__importance_weights": "masked"}, "importance_level: sequence or geometric"),
    ],
)  # fmt: skip
def test_grpo_keys_that_cannot_be(tmp_path, changes, message):
    fixed = {"grpo__prompts_per_step": 8, "grpo__group_size": 8}
    small_config("grpo", "x", tmp_path, **fixed)
    with pytest.raises(UserError, match=message):
        small_config("grpo", "x", tmp_path, **fixed | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"grpo__advantage": "leave_one_out", "grpo__advantage_scale": "none"},
        {"grpo__reward": ["answer", "a:b"], "grpo__reward_weights": [1, 0.5]},
        {"grpo__advantage": "batch", "grpo__advantage_scale": "none"},
        MAX_RL | DYNAMIC | {"grpo__max_resamples": 2},
        DYNAMIC | {"grpo__overlong_cache": 8, "grpo__importance_weights": "masked", "grpo__importance_level": "token"},
        GSPO | {"grpo__importance_weights": "masked", "grpo__importance_level": "geometric"},
        TEACHER | {"grpo__group_size": 1, "grpo__mask_truncated": True, "grpo__importance_weights": "truncated"},
        TEACHER | HELD_OUT | {"training__best_metric": "watched/answer_held_out"},
        {
            "grpo__loss": "cispo",
            "grpo__clip_low": None,
            "grpo__importance_weights": "truncated",
            "grpo__importance_cap": 1.0,
        },
    ],
)
def test_keys_that_go_together(tmp_path, changes):
    made = small_config("grpo", "x", tmp_path, **changes)
    for key, value in changes.items():
        group, name = key.split("__")
        assert getattr(getattr(made, group), name) == value, key


def test_a_reward_model_takes_the_place_of_the_default_reward():
    model = {"model": {"name": "x"}, "data": {"name": "y"}}
    assert GrpoConfig(**model).grpo.reward == "answer"
    learned = GrpoConfig(**model, grpo={"reward_model": "folder"}).grpo
    assert (learned.reward, learned.reward_model) == (None, "folder")


def test_a_teacher_takes_the_place_of_the_default_reward():
    model = {"model": {"name": "x"}, "data": {"name": "y"}}
    learned = GrpoConfig(**model, grpo={"advantage": "teacher", "teacher": "z", "advantage_scale": "none"}).grpo
    assert (learned.reward, learned.reward_model, learned.learns_from_rewards) == (None, None, False)
    assert type(learned)(**learned.model_dump()) == learned


def test_what_is_left_out_has_the_default_of_its_loss_and_of_its_weights():
    """And what has no meaning stays none, so that the resolved file reads back."""

    def keys(**given):
        return GrpoConfig(model={"name": "x"}, data={"name": "y"}, grpo=given).grpo

    assert [(keys().clip_low, keys().clip_high), keys().importance_cap, keys().max_resamples] == [
        (0.2, 0.2),
        None,
        None,
    ]
    gspo = keys(loss="gspo", length_weighting="sequence")
    assert (gspo.clip_low, gspo.clip_high) == (3e-4, 4e-4)
    assert keys(loss="gspo", length_weighting="sequence", clip_high=0.1).clip_high == 0.1
    cispo = keys(loss="cispo")
    assert (cispo.clip_low, cispo.clip_high) == (None, 4.0)
    assert keys(**cispo.model_dump()) == cispo
    truncated = keys(importance_weights="truncated")
    assert (truncated.importance_cap, truncated.importance_low, truncated.importance_level) == (2.0, None, None)
    masked = keys(importance_weights="masked", importance_low=0.1)
    assert (masked.importance_low, masked.importance_high, masked.importance_level) == (0.1, 5.0, "token")
    assert keys(**masked.model_dump()) == masked and masked.importance_cap is None
    dynamic = GrpoConfig(
        model={"name": "x"}, data={"name": "y"}, training={"max_steps": 3}, grpo={"dynamic_sampling": True}
    )
    assert dynamic.grpo.max_resamples == 4


@pytest.mark.parametrize("file", sorted((ROOT / "configs/variants").glob("*_tiny.yaml")), ids=lambda file: file.stem)
def test_the_variants_of_grpo_say_their_paper_and_differ_from_it(file):
    config, base = load(file), load(ROOT / "configs/grpo_tiny.yaml")
    if config.method != "grpo":
        return
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and "arXiv" in first and f"configs/variants/{file.name}" in file.read_text()
    assert config.grpo != base.grpo and config.data == base.data and config.model == base.model
    rollouts = [c.training.max_steps / c.grpo.minibatches / c.grpo.inner_epochs for c in (config, base)]
    assert rollouts == [60, 60]  # the table compares them on the same number
