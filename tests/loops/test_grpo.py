from functools import partial

import pytest
import torch
from kit import bytelevel_tokenizer, even_tokens, metric, right_or_wrong, run_loop, small_config, tiny_folder
from transformers import AutoModelForCausalLM

from loops import grpo
from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.rollouts import sampling

ROWS = [{"prompt": f"Question {i}?" + " Hm." * (i % 3), "answer": str(i)} for i in range(1, 8)]
config, run = partial(small_config, "grpo"), partial(run_loop, grpo, rows=ROWS, reward=even_tokens)


def test_the_reward_rises(tmp_path, llama):
    result = run(
        llama,
        tmp_path,
        training__max_steps=40,
        training__learning_rate=5e-3,
        training__schedule="constant",
        grpo__kl_coef=0.0,
    )
    reward = metric(result, "reward")
    assert sum(reward[-5:]) / 5 > sum(reward[:5]) / 5 + 0.1


def test_on_policy_numbers_of_the_first_step(tmp_path, llama):
    first = run(llama, tmp_path).metrics[0]
    assert first["ratio"] == pytest.approx(1, abs=1e-6) and first["clip_fraction"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-6) and first["kl_k1"] == pytest.approx(0, abs=1e-6)
    for name in ("dead_groups", "finished", "completion_length", "entropy", "grad_norm"):
        assert name in first


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_step_equivalence(tmp_path, llama, how):
    runs = [
        run(llama, tmp_path, training__micro_batch_size=m, grpo__length_weighting=how, training__max_steps=1)
        for m in (8, 3, 1)
    ]
    for other in runs[1:]:
        for name in ("loss", "grad_norm", "reward", "kl"):
            assert metric(other, name) == pytest.approx(metric(runs[0], name), abs=2e-6)


def test_steps_minibatches_and_inner_epochs(tmp_path, llama):
    """max_steps counts optimiser steps; every rollout gives minibatches × inner_epochs of them, on the same rewards."""
    result = run(
        llama, tmp_path, training__max_steps=5, grpo__minibatches=2, grpo__inner_epochs=2, training__learning_rate=1e-2
    )
    rewards = metric(result, "reward")
    assert len(rewards) == 5 and len(set(rewards[:4])) == 1 and rewards[4] != rewards[0]
    assert metric(result, "ratio")[0] == pytest.approx(1, abs=1e-5)
    assert any(abs(r - 1) > 1e-3 for r in metric(result, "ratio")[1:4])  # old stays where the rollout was
    assert metric(result, "learning_rate")[0] == pytest.approx(1e-2) and metric(result, "learning_rate")[
        4
    ] == pytest.approx(0.2e-2)


def test_epochs_count_passes_over_the_prompts(tmp_path, llama):
    result = run(llama, tmp_path, training__max_steps=None, training__epochs=2)
    assert len(result.metrics) == 6  # 7 prompts, 2 a rollout: 3 whole rollouts a pass


def test_sampled_ids_reach_the_loss_without_being_tokenised_again(tmp_path, llama, monkeypatch):
    """What is trained on is what was sampled, the stop token included."""
    rollouts, trained = [], []
    real_sample, real_lay_out = grpo.sample_own, grpo.lay_out
    monkeypatch.setattr(grpo, "sample_own", lambda *a, **k: rollouts.append(real_sample(*a, **k)) or rollouts[-1])
    monkeypatch.setattr(grpo, "lay_out", lambda a, *p: trained.extend(a) or real_lay_out(a, *p))
    run(llama, tmp_path, training__max_steps=1, grpo__kl_coef=0.0)
    (rollout,) = rollouts
    assert isinstance(rollout, sampling.Rollout)
    expected = sorted(p + c for p, c in zip(rollout.prompt_ids, rollout.completion_ids, strict=True))
    assert sorted(a.example.input_ids for a in trained) == expected
    assert sum(a.example.num_active for a in trained) == sum(map(len, rollout.completion_ids))


def test_preflight_refuses_a_sampler_that_disagrees(tmp_path, llama, monkeypatch):
    real = sampling.sample

    def hot(*args, **kwargs):
        return real(*args, **(kwargs | {"temperature": 1.5}))

    monkeypatch.setattr(sampling, "sample", hot)
    with pytest.raises(UserError, match="preflight: sampler and trainer disagree"):
        run(llama, tmp_path)


def test_mask_truncated_takes_rows_out_of_the_loss_but_not_out_of_the_baseline(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(
        grpo.template, "stop_ids", lambda tokenizer: list(range(100, 200))
    )  # a random model ends about a third
    everything = run(llama, tmp_path, training__max_steps=1, grpo__max_new_tokens=2).metrics[0]
    masked = run(llama, tmp_path, training__max_steps=1, grpo__max_new_tokens=2, grpo__mask_truncated=True).metrics[0]
    assert 0 < masked["finished"] < 1
    assert everything["reward"] == masked["reward"] and everything["grad_norm"] != pytest.approx(
        masked["grad_norm"], rel=1e-3
    )


def test_all_groups_dead_is_a_warning_that_says_why(tmp_path, llama, capfd):
    result = run(
        llama, tmp_path, reward=lambda completions: [0.0] * len(completions), training__max_steps=1, grpo__kl_coef=0.0
    )
    assert metric(result, "dead_groups") == [1.0] and metric(result, "grad_norm") == [0.0]
    assert "every group of the first rollout is dead" in capfd.readouterr().err


def test_rewards_get_their_rows_columns_and_the_parse_failures_are_counted(tmp_path, llama):
    seen = []

    def reward(completions, answer, prompts, finished, completion_ids):
        seen.append((answer, prompts))
        return [float(i) for i in range(len(completions))]

    run(llama, tmp_path, reward=reward, training__max_steps=1)
    answers, prompts = seen[0]
    for i in range(0, 8, 4):  # groups of four share their row
        assert len(set(answers[i : i + 4])) == 1
        assert prompts[i].startswith(f"Question {answers[i]}?")
    result = run(llama, tmp_path, reward=None, training__max_steps=1)
    assert metric(result, "parse_failures") == [1.0]  # a random model never writes ####


def test_variants_of_the_config_change_the_gradient(tmp_path, llama):
    plain = run(llama, tmp_path, training__max_steps=1)
    loo = run(llama, tmp_path, grpo__advantage="leave_one_out", grpo__advantage_scale="none", training__max_steps=1)
    unscaled = run(llama, tmp_path, grpo__advantage_scale="none", grpo__clip_high=0.28, training__max_steps=1)
    two = run(
        llama, tmp_path, reward=[even_tokens, lambda completions: [0.5] * len(completions)], training__max_steps=1
    )
    # on the first step KL is 0, so only the advantages matter: leave-one-out is the unscaled one times G / (G − 1) = 4/3
    assert metric(loo, "grad_norm")[0] == pytest.approx(4 / 3 * metric(unscaled, "grad_norm")[0], rel=1e-4)
    assert metric(plain, "grad_norm")[0] != pytest.approx(metric(unscaled, "grad_norm")[0], rel=1e-2)
    assert metric(two, "reward")[0] == pytest.approx(metric(plain, "reward")[0] + 0.5) and metric(two, "loss")[
        0
    ] == pytest.approx(metric(plain, "loss")[0], abs=1e-5)


@pytest.mark.parametrize("estimator", ["k3", "k2"])
def test_kl_estimators_run(tmp_path, llama, estimator):
    assert len(run(llama, tmp_path, grpo__kl_estimator=estimator).metrics) == 3


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_checkpointing_and_lora(tmp_path, llama, adapter):
    """Gradient checkpointing needs train mode, sampling needs the cache: both in one run, with the same numbers."""
    off, on = (
        run(llama, tmp_path, model__adapter=adapter, model__gradient_checkpointing=c, training__max_steps=2)
        for c in (False, True)
    )
    for name in ("loss", "grad_norm", "reward"):
        assert metric(on, name) == pytest.approx(metric(off, name), abs=1e-5)
    assert on.model.training


def test_gpt2_with_dropout_in_its_config(tmp_path):
    result = run(tiny_folder(tmp_path / "gpt2", "gpt2"), tmp_path)
    assert metric(result, "kl")[0] == pytest.approx(0, abs=1e-6)


def test_bf16(tmp_path, llama):
    for adapter in ("none", "lora"):
        result = run(llama, tmp_path, model__dtype="bfloat16", model__adapter=adapter, output__samples=2)
        assert len(result.metrics) == 3


@pytest.mark.draws
def test_held_out_reward(tmp_path, llama):
    result = run(llama, tmp_path, data__validation_split=0.3, training__eval_every=2)
    assert (
        "reward_held_out" in result.metrics[1]
        and "reward_held_out" in result.metrics[-1]
        and "reward_held_out" not in result.metrics[0]
    )
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, llama):
    a, b, c = (run(llama, tmp_path, training__seed=s) for s in (0, 0, 1))
    assert metric(a, "loss") == metric(b, "loss") and metric(a, "reward") != metric(c, "reward")


def test_refusals(tmp_path, llama):
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        run(llama, tmp_path, grpo__max_new_tokens=256)
    with pytest.raises(UserError, match="asks for level"):
        run(llama, tmp_path, reward=lambda completions, level: [])
    with pytest.raises(UserError, match="rows, row 1: the reward 'answer' needs a column `answer`"):
        run(llama, tmp_path, rows=[{"prompt": "x"}], reward=None)


def test_a_reward_written_for_trl_gets_what_trl_gives(tmp_path, llama):
    """Conversational prompts give completions as message lists, string prompts strings; columns come by name."""
    seen = []

    def conversational(prompts, completions, answer, **columns):
        seen.append((prompts, completions, answer, columns))
        return [0.0 if len(c[0]["content"]) % 2 else 1.0 for c in completions]

    rows = [{"prompt": [{"role": "user", "content": f"Question {i}?"}], "answer": str(i), "level": i} for i in range(4)]
    run(llama, tmp_path, rows=rows, reward=conversational, training__max_steps=1)
    prompts, completions, answer, columns = seen[0]
    assert all(set(c[0]) == {"role", "content"} and c[0]["role"] == "assistant" for c in completions)
    assert prompts[0] == [{"role": "user", "content": f"Question {answer[0]}?"}] and columns["level"][0] == int(
        answer[0]
    )
    assert len(columns["completion_ids"]) == len(completions)

    strings = []
    run(
        llama,
        tmp_path,
        rows=[{"prompt": f"Question {i}?"} for i in range(4)],
        reward=lambda prompts, completions: (
            strings.extend([*prompts, *completions]) or [float(i) for i in range(len(completions))]
        ),
        training__max_steps=1,
    )
    assert all(isinstance(s, str) for s in strings) and strings[0].startswith("Question")


def test_several_rewards_by_import_path_with_weights_and_abstentions(tmp_path, llama, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n\n"
        "def shy(completions, level, **columns):\n    return [1.0 if l else None for l in level]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"prompt": f"Question {i}?", "level": i % 2} for i in range(4)]
    both = {
        "grpo__reward": ["my_rewards:length", "my_rewards:shy"],
        "training__max_steps": 1,
        "grpo__prompts_per_step": 4,
    }
    plain = run(llama, tmp_path, rows=rows, reward=None, **both | {"grpo__reward": "my_rewards:length"})
    weighted = run(llama, tmp_path, rows=rows, reward=None, grpo__reward_weights=[1.0, 4.0], **both)
    # half of the rows get 4 × 1, the others nothing: 2 more on average
    assert metric(weighted, "reward")[0] == pytest.approx(metric(plain, "reward")[0] + 2.0, abs=1e-5)
    assert (
        metric(weighted, "reward/length")[0] == pytest.approx(metric(plain, "reward")[0])
        and metric(weighted, "reward/shy")[0] == 1.0
    )
    with pytest.raises(UserError, match="every reward function returned None"):
        run(llama, tmp_path, rows=rows, reward=None, **both | {"grpo__reward": "my_rewards:shy"})


def test_a_stream_of_prompts(tmp_path, llama):
    stream = {
        "data__name": str(ROOT / "tests/data/word_problems.jsonl"),
        "data__streaming": True,
        "training__max_steps": 7,
    }
    result = run(llama, tmp_path, rows=None, **stream)
    assert len(result.metrics) == 7  # 12 prompts, 2 a rollout: over the end of the stream and on
    with pytest.raises(UserError, match=r"fewer prompts than grpo.prompts_per_step = 20"):
        run(llama, tmp_path, rows=None, **stream, grpo__prompts_per_step=20)


def test_a_bad_answer_is_named_before_anything_is_sampled(tmp_path, llama):
    rows = [{"prompt": f"Question {i}?", "answer": str(i)} for i in range(5)] + [
        {"prompt": "Question?", "answer": True}
    ]
    with pytest.raises(UserError, match="rows, row 6: reward 'answer': the column `answer` must hold a number"):
        run(llama, tmp_path, rows=rows, reward=None)
    assert not (tmp_path / "run").exists()


def test_a_question_that_is_the_prompt_is_still_a_column(tmp_path, llama):
    asked = []
    rows = [{"question": f"Question {i}?"} for i in range(4)]
    run(llama, tmp_path, rows=rows, reward=lambda completions, question: asked.extend(question) or [float(i) for i in range(len(completions))], training__max_steps=1)  # fmt: skip
    assert asked[0].startswith("Question")


# ---------------------------------------------------------------- the variants

CISPO = {"grpo__loss": "cispo", "grpo__clip_low": None, "grpo__clip_high": 4.0}
GSPO = {"grpo__loss": "gspo", "grpo__length_weighting": "sequence", "grpo__clip_low": 0.2, "grpo__clip_high": 0.2}


@pytest.fixture
def of_all_lengths(monkeypatch):
    """A random model hardly ever says one given token: with a hundred stop tokens about a third of its answers end."""
    monkeypatch.setattr(grpo.template, "stop_ids", lambda tokenizer: list(range(100, 200)))


def test_on_policy_gspo_and_cispo_are_grpo(tmp_path, llama, of_all_lengths):
    """One update per rollout: every ratio is 1, and the gradients are the same (the values are not)."""
    one = {"training__max_steps": 1}
    grpo_, cispo = run(llama, tmp_path, **one), run(llama, tmp_path, **CISPO, **one)
    assert metric(cispo, "grad_norm") == pytest.approx(metric(grpo_, "grad_norm"), rel=1e-5)
    sequence, gspo = run(llama, tmp_path, grpo__length_weighting="sequence", **one), run(llama, tmp_path, **GSPO, **one)
    assert metric(gspo, "grad_norm") == pytest.approx(metric(sequence, "grad_norm"), rel=1e-5)
    assert metric(grpo_, "grad_norm")[0] != pytest.approx(metric(gspo, "grad_norm")[0], rel=1e-3)


def test_off_policy_they_differ(tmp_path, llama, of_all_lengths):
    """The same rollout, updated twice with a large step; what is clipped is not the same."""
    steps = {
        "training__max_steps": 2,
        "grpo__inner_epochs": 2,
        "training__learning_rate": 2e-2,
        "training__schedule": "constant",
    }
    sequence = {"grpo__length_weighting": "sequence"}
    runs = [run(llama, tmp_path, **steps | sequence | variant) for variant in ({}, GSPO, CISPO)]
    for name in ("reward", "grad_norm"):
        assert len({round(metric(one, name)[0], 4) for one in runs}) == 1  # from the same start
    assert len({round(metric(one, "grad_norm")[1], 4) for one in runs}) == 3
    assert all(abs(metric(one, "ratio")[1] - 1) > 1e-3 for one in runs)


@pytest.mark.parametrize("variant", [GSPO, CISPO], ids=["gspo", "cispo"])
def test_step_equivalence_of_the_variants(tmp_path, llama, variant, of_all_lengths):
    steps = {"training__max_steps": 2, "grpo__inner_epochs": 2, **variant}
    whole, cut = (run(llama, tmp_path, training__micro_batch_size=m, **steps) for m in (8, 3))
    for name in ("loss", "grad_norm", "kl", "clip_fraction", "ratio"):
        assert metric(cut, name) == pytest.approx(metric(whole, name), abs=5e-6), name


def test_scales_of_the_advantages(tmp_path, llama):
    """On the first step the KL is 0: max_rl of one group of mean m is the unscaled one over m."""
    fixed = {
        "grpo__advantage_scale": "none",
        "training__max_steps": 1,
        "grpo__prompts_per_step": 1,
        "grpo__group_size": 8,
    }
    runs = {
        how: run(llama, tmp_path, reward=right_or_wrong, grpo__advantage=how, **fixed)
        for how in ("group", "max_rl", "batch")
    }
    plain, m = metric(runs["group"], "grad_norm")[0], metric(runs["group"], "reward")[0]
    assert 0 < m < 1 and plain > 0
    assert metric(runs["max_rl"], "grad_norm")[0] == pytest.approx(plain / m, rel=1e-4)
    assert metric(runs["batch"], "grad_norm")[0] == pytest.approx(plain / (m * (1 - m)) ** 0.5, rel=1e-4)
    with pytest.raises(UserError, match=r"grpo.advantage: max_rl needs a verifiable reward"):
        run(llama, tmp_path, grpo__advantage="max_rl", **fixed)


def test_dynamic_sampling_fills_every_step_with_groups_that_teach(tmp_path, llama, monkeypatch):
    learned, asked = [], []
    credit, sample = grpo.credit, grpo.sample_own
    monkeypatch.setattr(
        grpo, "credit", lambda s, policy, answers: learned.append(answers) or credit(s, policy, answers)
    )
    monkeypatch.setattr(grpo, "sample_own", lambda *a, **k: asked.append(k["number"]) or sample(*a, **k))
    fixed = {
        "grpo__dynamic_sampling": True,
        "grpo__max_resamples": 8,
        "training__max_steps": 5,
        "grpo__prompts_per_step": 3,
    }
    result = run(llama, tmp_path, reward=right_or_wrong, **fixed)
    assert len(learned) == 5
    for answers in learned:
        assert len(answers) == 12
        groups = [answers[i : i + 4] for i in range(0, 12, 4)]
        assert all(len({a.reward for a in group}) == 2 for group in groups)
        assert all(len({tuple(a.example.input_ids[:5]) for a in group}) == 1 for group in groups)  # of one prompt
    # every rollout is another one, and all of them are counted
    assert asked == list(range(len(asked))) and len(asked) == 5 + sum(metric(result, "resamples")) > 5
    assert metric(result, "groups_missing") == [0.0] * 5
    dead = [d * 3 * (1 + r) for d, r in zip(metric(result, "dead_groups"), metric(result, "resamples"), strict=True)]
    alive = [3 * (1 + r) - d for d, r in zip(dead, metric(result, "resamples"), strict=True)]
    assert [a - 3 for a in alive] == pytest.approx(metric(result, "groups_left_over"), abs=1e-4)


def test_dynamic_sampling_gives_up_where_nothing_teaches(tmp_path, llama):
    result = run(
        llama, tmp_path, reward=lambda completions: [0.0] * len(completions), training__max_steps=2, grpo__kl_coef=0.0,
        grpo__dynamic_sampling=True, grpo__max_resamples=2,
    )  # fmt: skip
    assert metric(result, "resamples") == [2.0, 2.0] and metric(result, "groups_missing") == [2.0, 2.0]
    assert metric(result, "grad_norm") == [0.0, 0.0] and metric(result, "dead_groups") == [1.0, 1.0]
    with pytest.raises(UserError, match=r"grpo.dynamic_sampling needs a verifiable reward"):
        run(llama, tmp_path, grpo__dynamic_sampling=True)


def test_long_answers_pay_and_that_is_not_what_is_called_the_reward(tmp_path, llama, of_all_lengths):
    plain, paid = (
        run(llama, tmp_path, training__max_steps=1, grpo__overlong_cache=c) for c in (None, 8)
    )  # all 8 tokens
    assert metric(paid, "reward") == metric(plain, "reward") and "overlong_punishment" not in plain.metrics[0]
    assert metric(paid, "overlong_punishment")[0] == pytest.approx(-metric(plain, "completion_length")[0] / 8, abs=1e-6)
    assert metric(paid, "grad_norm")[0] != pytest.approx(metric(plain, "grad_norm")[0], rel=1e-3)


def test_importance_weights_put_another_sampler_right(tmp_path, llama, monkeypatch):
    """The own sampler needs none: weight 1. One that samples at another temperature does, and is refused by the
    preflight until that is switched off."""
    fixed = {"training__max_steps": 1, "grpo__importance_weights": "truncated"}
    plain, own = run(llama, tmp_path, training__max_steps=1), run(llama, tmp_path, **fixed)
    assert metric(own, "importance_weight")[0] == pytest.approx(1, abs=1e-4) and metric(own, "importance_cut") == [0.0]
    assert metric(own, "grad_norm")[0] == pytest.approx(metric(plain, "grad_norm")[0], rel=1e-3)
    real = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a, **k: real(*a, **(k | {"temperature": 2.0})))
    with pytest.raises(UserError, match="sampler and trainer disagree"):
        run(llama, tmp_path, **fixed)
    hot = [run(llama, tmp_path, preflight__sampler=False, **more) for more in ({"training__max_steps": 1}, fixed)]
    assert 0 < metric(hot[1], "importance_cut")[0] < 1 and metric(hot[1], "importance_weight")[0] != pytest.approx(
        1, abs=0.05
    )
    assert metric(hot[1], "grad_norm")[0] != pytest.approx(metric(hot[0], "grad_norm")[0], rel=0.05)


def test_a_whole_variant_in_bf16_with_masked_rows(tmp_path, llama, of_all_lengths):
    """Everything at once: autocast, rows left out, weights per answer, several updates, further prompts."""
    result = run(
        llama, tmp_path, reward=right_or_wrong, model__dtype="bfloat16", **GSPO, grpo__minibatches=2, grpo__mask_truncated=True,
        grpo__dynamic_sampling=True, grpo__importance_weights="masked", grpo__importance_level="geometric", training__max_steps=4,
    )  # fmt: skip
    assert len(result.metrics) == 4 and metric(result, "importance_weight")[0] == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- a teacher in a reward's place

TAUGHT = {"grpo__advantage": "teacher", "grpo__advantage_scale": "none", "grpo__reward": None, "grpo__kl_coef": 0.0}
ALONE = {"grpo__group_size": 1, "grpo__prompts_per_step": 6}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("teacher"), seed=3, num_hidden_layers=1)


@pytest.fixture
def learn(llama, tmp_path, teacher):
    """A run from a teacher, by default one that differs."""
    return lambda **more: run(llama, tmp_path, reward=None, **{"grpo__teacher": teacher, **TAUGHT, **more})


def test_the_student_comes_nearer_to_its_teacher_from_one_answer_a_prompt(learn):
    steps = {"training__max_steps": 100, "training__learning_rate": 1e-2, "training__schedule": "constant"}
    gap = metric(learn(**ALONE, **steps, grpo__loss="cispo", grpo__clip_low=None), "teacher_kl")
    assert sum(gap[-5:]) < 0.6 * sum(gap[:5]) and gap[0] > 0.5


def test_the_advantage_of_each_token_is_what_plain_transformers_say(learn, teacher, monkeypatch):
    """At the rollout's temperature; a muted row has none."""
    seen, real = [], grpo.taught
    monkeypatch.setattr(grpo, "taught", lambda answers: seen.append(real(answers)) or seen[-1])
    result = learn(
        grpo__temperature=0.6, training__max_steps=1, grpo__mask_truncated=True, training__micro_batch_size=3
    )
    ((answers, _),) = seen
    model, gaps = AutoModelForCausalLM.from_pretrained(teacher).eval(), []
    assert {a.finished for a in answers} == {False}  # of a random model
    assert all(len(a.columns["advantages"]) == 0 for a in answers)
    seen.clear()
    result = learn(grpo__temperature=0.6, training__max_steps=1, training__micro_batch_size=3)
    ((answers, _),) = seen
    for a in answers:
        ids = torch.tensor([a.example.input_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(ids).logits[0, :-1] / 0.6, -1).gather(-1, ids[0, 1:, None])[:, 0]
        expected = logps[a.example.prompt_length - 1 :] - a.columns["sampler_logps"]
        torch.testing.assert_close(a.columns["advantages"], expected, atol=1e-4, rtol=1e-4)
        gaps.append(-expected)
    assert metric(result, "teacher_kl") == [pytest.approx(torch.cat(gaps).mean().item(), abs=1e-5)]


def test_a_teacher_is_asked_at_the_rollouts_temperature(learn, llama, monkeypatch):
    """One that is the student has nothing to teach. Asked at 1 it would find what was likely too likely."""
    own = {**ALONE, "grpo__teacher": llama, "grpo__temperature": 0.6, "training__max_steps": 1}
    right = learn(**own).metrics[0]
    assert right["teacher_kl"] == pytest.approx(0, abs=1e-5) and right["grad_norm"] < 1e-4
    real = grpo.load_grader

    def at_1(*told):
        module = real(*told)
        monkeypatch.setattr(module, "forward", lambda batch, temperature: type(module).forward(module, batch))
        return module

    monkeypatch.setattr(grpo, "load_grader", at_1)
    wrong = learn(**own).metrics[0]
    assert abs(wrong["teacher_kl"]) > 0.1 and wrong["grad_norm"] > 0.1


def test_steps_from_a_teacher_do_not_depend_on_how_they_are_cut(learn, of_all_lengths):
    """Shared prompts, several updates, rows left out, weights for another sampler: at once."""
    fixed = {
        "training__max_steps": 4, "grpo__minibatches": 2, "grpo__mask_truncated": True, "grpo__kl_coef": 0.1,
        "grpo__importance_weights": "masked",
    }  # fmt: skip
    whole, cut, apart = (
        learn(**fixed, training__micro_batch_size=m, training__share_prompts=s)
        for m, s in ((8, True), (3, True), (2, False))
    )
    for other in (cut, apart):
        for name in ("loss", "grad_norm", "kl", "ratio", "teacher_kl", "importance_weight"):
            assert metric(other, name) == pytest.approx(metric(whole, name), abs=1e-5, rel=1e-4), name


def test_importance_weights_take_the_trainers_own_log_probs(learn, monkeypatch):
    """Another sampler than the trainer: the advantage is the teacher's against the trainer's, and is weighed."""
    real, seen = sampling.sample, []
    monkeypatch.setattr(sampling, "sample", lambda *a, **k: real(*a, **(k | {"temperature": 2.0})))
    weigh = grpo.weigh
    monkeypatch.setattr(grpo, "weigh", lambda answers, keys: seen.extend(answers) or weigh(answers, keys))
    learn(training__max_steps=1, preflight__sampler=False, grpo__importance_weights="truncated")
    for a in seen:
        expected = a.columns["teacher_logps"] - a.columns["old_logps"]
        torch.testing.assert_close(a.columns["advantages"], expected)
        assert (a.columns["old_logps"] - a.columns["sampler_logps"]).abs().max() > 0.1


def test_nothing_is_rewarded_and_what_is_watched_is_measured(learn, capfd):
    more = {"grpo__watch": "kit:even_tokens", "data__validation_split": 0.3, "training__eval_every": 1}
    row = learn(training__max_steps=1, **more).metrics[0]
    assert 0 < row["watched/even_tokens"] < 1 and 0 <= row["watched/even_tokens_held_out"] <= 1
    assert not {"reward", "reward_held_out", "dead_groups"} & set(row)
    assert "no answer of the first rollout ended" in capfd.readouterr().err


def test_a_teacher_in_bf16(learn):
    result = learn(model__dtype="bfloat16", **ALONE)
    assert len(result.metrics) == 3 and metric(result, "teacher_kl")[0] > 0.5


def test_what_a_teacher_may_not_be(learn, tmp_path, llama):
    tokenizer = bytelevel_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    other = tiny_folder(tmp_path / "other", tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"^grpo.teacher '.*' has another vocabulary than the student"):
        learn(grpo__teacher=other)
    with pytest.raises(UserError, match=r"advantage: teacher learns from no reward function: name it in grpo.watch"):
        run(llama, tmp_path, grpo__teacher=llama, **TAUGHT)  # with reward=even_tokens
