"""What GRPO's answers are credited with: the keys choose, the losses' functions compute."""

from types import SimpleNamespace

import pytest
import torch
from kit import small_config

from posttrain.errors import UserError
from posttrain.rollouts.answers import Answer
from posttrain.rollouts.crediting import about_groups, advantages_of, credited, rewards_of, taught, weigh
from posttrain.tokens.batch import Example


def answer(reward, tokens=2, **columns):
    columns = {name: torch.tensor(values) for name, values in columns.items()}
    return Answer(Example.of([5], [7] * tokens), columns, reward, True)


def keys(tmp_path, **given):
    fixed = {"grpo__group_size": 2, "grpo__prompts_per_step": 2}
    return small_config("grpo", "x", tmp_path, **fixed | {f"grpo__{k}": v for k, v in given.items()})


def run_of(config, times=1):
    """One process of `times`, each of which says the same."""
    return SimpleNamespace(config=config, sum_over_processes=lambda value: times * value)


ANSWERS = [answer(1.0), answer(0.0), answer(0.0), answer(0.0)]


def test_each_advantage_is_its_function(tmp_path):
    # groups [1, 0] and [0, 0]: std √½ = 0.707107: ½ / 0.707207 = 0.707007; ½; 1 − 0; ½ / ½;
    # batch: variance (¼ + ¼) / 4, std 0.353553: ½ / 0.353553 = 1.414214
    expected = {
        ("group", "std"): 0.707007, ("group", "none"): 0.5, ("leave_one_out", "none"): 1.0, ("max_rl", "none"): 1.0,
        ("batch", "none"): 1.414214,
    }  # fmt: skip
    for (how, scale), value in expected.items():
        run = run_of(keys(tmp_path, advantage=how, advantage_scale=scale))
        assert advantages_of(ANSWERS, run).tolist() == pytest.approx([value, -value, 0.0, 0.0], abs=1e-6), how


def test_the_batch_is_that_of_all_processes(tmp_path):
    config = keys(tmp_path, advantage="batch", advantage_scale="none")
    one = run_of(config, 1)
    # another process whose two groups are dead: twice as many rows, half the variance
    two = SimpleNamespace(config=config, sum_over_processes=lambda value: value + 4 * (value == 4.0))
    assert advantages_of(ANSWERS, two)[0] == pytest.approx(2**0.5 * advantages_of(ANSWERS, one)[0].item(), rel=1e-5)


def test_max_rl_refuses_graded_rewards(tmp_path):
    run = run_of(keys(tmp_path, advantage="max_rl", advantage_scale="none"))
    with pytest.raises(UserError, match=r"grpo.advantage: max_rl needs a verifiable reward, 0 or 1 .* gave 0, 0\.5"):
        advantages_of([answer(0.5), answer(0.0)], run)


def test_long_answers_pay_and_their_groups_are_not_dead(tmp_path):
    grpo = keys(tmp_path, overlong_cache=4, max_new_tokens=8).grpo
    answers = [answer(1.0, 4), answer(1.0, 6), answer(0.0, 8), answer(0.0, 8)]
    assert rewards_of(answers, grpo).tolist() == [1.0, 0.5, -1.0, -1.0]  # (8 − 4 − 6) / 4 = −½
    assert about_groups(answers, grpo) == {"dead_groups": (1, 2), "overlong_punishment": (-2.5, 4)}
    plain = keys(tmp_path).grpo
    assert rewards_of(answers, plain).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert about_groups(answers, plain) == {"dead_groups": (2, 2)}


def test_every_token_gets_the_advantage_of_its_answer():
    answers = [answer(1.0, 2, sampler_logps=[-1.0, -2.0]), answer(0.0, 1, sampler_logps=[-3.0])]
    out = credited(answers, torch.tensor([0.5, -0.5]))
    assert [a.columns["advantages"].tolist() for a in out] == [[0.5, 0.5], [-0.5]]


def test_a_teacher_credits_every_token():
    # −1 − (−3) = 2, −2 − (−1) = −1; where the trainer was asked, it is believed: −1 − (−1.5) = ½; a muted row has none
    answers = [
        answer(0.0, 2, teacher_logps=[-1.0, -2.0], sampler_logps=[-3.0, -1.0]),
        answer(0.0, 1, teacher_logps=[-1.0], sampler_logps=[-3.0], old_logps=[-1.5]),
        answer(0.0, 1, teacher_logps=[], sampler_logps=[-3.0]).muted(),
    ]
    out, told = taught(answers)
    assert [a.columns["advantages"].tolist() for a in out] == [[2.0, -1.0], [0.5], []]
    assert told == {"teacher_kl": (-1.5, 3)} and "advantages" not in answers[0].columns


def test_a_teacher_knows_no_groups(tmp_path):
    keys_ = keys(tmp_path, advantage="teacher", teacher="x", reward=None, advantage_scale="none")
    assert about_groups(ANSWERS, keys_.grpo) == {}


def weighed(tmp_path, **given):
    # trainer/sampler: e^0 and e^1 of the first answer, e^−1 of the second
    answers = [
        answer(1.0, 2, advantages=[2.0, 2.0], old_logps=[-1.0, -1.0], sampler_logps=[-1.0, -2.0]),
        answer(0.0, 1, advantages=[-1.0], old_logps=[-2.0], sampler_logps=[-1.0]),
        answer(0.0, 1, advantages=[-1.0], old_logps=[], sampler_logps=[-1.0]).muted(),
    ]
    out, told = weigh(answers, keys(tmp_path, **given).grpo)
    assert [a.columns["advantages"].tolist() for a in answers] == [[2.0, 2.0], [-1.0], [-1.0]]  # a copy
    assert out[2] is answers[2]
    return [a.columns["advantages"].tolist() for a in out[:2]], told


def test_advantages_are_weighed_by_the_ratio_of_trainer_and_sampler(tmp_path):
    (a, b), told = weighed(tmp_path, importance_weights="truncated")
    assert a == pytest.approx([2.0, 4.0], abs=1e-6) and b == pytest.approx([-0.367879], abs=1e-6)  # min(e, 2) = 2, e^−1
    assert told["importance_weight"] == (pytest.approx(3.367879), 3) and told["importance_cut"] == (1, 3)
    (a, b), told = weighed(tmp_path, importance_weights="masked")
    assert a == pytest.approx([2.0, 5.436564], abs=1e-6) and b == [0.0]  # e · 2; e^−1 < ½
    assert told["importance_cut"] == (1, 3)
    (a, b), told = weighed(tmp_path, importance_weights="masked", importance_level="geometric", importance_low=0.3)
    assert a == pytest.approx([3.297443, 3.297443], abs=1e-6) and b == pytest.approx([-0.367879], abs=1e-6)  # e^½ · 2
    (a, _), told = weighed(tmp_path, importance_weights="masked", importance_level="sequence", importance_high=2.0)
    assert a == [0.0, 0.0] and told["importance_cut"] == (3, 3)
