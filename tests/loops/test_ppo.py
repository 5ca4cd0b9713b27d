"""PPO: masks and endings, the whole step's statistics, refusals; and that it learns."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from kit import bytelevel_tokenizer, even_tokens, metric, run_loop, sentencepiece_tokenizer, small_config, tiny_folder

from loops import ppo, reward
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.rollouts import sampling
from posttrain.rollouts.answers import Answer
from posttrain.run import written
from posttrain.tokens.batch import Example

ROWS = [{"prompt": f"Question {i}?" + " Hm." * (i % 3), "answer": str(i)} for i in range(8)]
config, run = partial(small_config, "ppo"), partial(run_loop, ppo, rows=ROWS, reward=even_tokens)


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_it_runs_and_every_trainable_tensor_moves(tmp_path, llama, critic, adapter):
    before = dict(models.load(llama)[0].named_parameters())
    result = run(llama, tmp_path, ppo__critic=critic, model__adapter=adapter)
    first, last = result.metrics[0], result.metrics[-1]
    assert first["kl"] == pytest.approx(0, abs=1e-6) and last["kl"] > 1e-6
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["value"] == 0.0  # the head starts at 0
    assert all(math.isfinite(v) for m in result.metrics for v in m.values())
    for name, p in result.model.named_parameters():
        if adapter == "none":
            assert not torch.equal(p, before[name]), name
        elif "lora_B" in name:
            assert p.abs().max() > 0
        elif "lora_" not in name:
            assert torch.equal(p, before[name.removeprefix("base_model.model.").replace(".base_layer", "")])


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_step_equivalence(tmp_path, llama, critic):
    """Micro-batches of 8, 3 and 1: the same losses, gradients and values; advantages are whitened over the whole rollout."""
    runs = [
        run(llama, tmp_path, ppo__critic=critic, training__micro_batch_size=m, training__max_steps=1) for m in (8, 3, 1)
    ]
    for other in runs[1:]:
        for name in ("loss", "policy_loss", "value_loss", "grad_norm", "kl", "explained_variance", "return"):
            assert metric(other, name) == pytest.approx(metric(runs[0], name), abs=3e-6), name
    parts = runs[2].metrics[0]
    assert parts["loss"] == pytest.approx(parts["policy_loss"] + 0.5 * parts["value_loss"], abs=1e-6)


def one_process(**changes):
    """A run that is asked for its config and for sums only."""
    made = load(ROOT / "configs/ppo_tiny.yaml", {f"ppo.{name}": value for name, value in changes.items()})
    return SimpleNamespace(config=made, sum_over_processes=lambda value: value)


def scored(example, reward=0.0, finished=True, **columns):
    return Answer(example, {name: torch.tensor(values) for name, values in columns.items()}, reward, finished)


def test_credit_by_hand():
    """One finished answer of three tokens, one cut off after two; β = 0: the pencil example of GAE, and its bootstrap."""
    run = one_process(truncated="bootstrap", whiten=False, lam=0.95)
    answers = [
        scored(Example.of([1, 2], [3, 4, 5]), old_logps=[0.0] * 3, values=[0.5] * 3, values_after=[0.5, 0.5, 99.0]),
        scored(Example.of([1], [6, 7]), old_logps=[0.0] * 2, values=[0.5] * 2, values_after=[0.5, 2.0]),
    ]
    scores, goes_on = ppo.end_once([1.0, 7.0], [True, False], run.config.ppo)
    got, explained = ppo.credit(answers, scores, goes_on, 0.0, run)
    assert got[0].columns["advantages"].tolist() == pytest.approx([0.45125, 0.475, 0.5], abs=1e-6)
    assert got[0].columns["returns"].tolist() == pytest.approx([0.95125, 0.975, 1.0], abs=1e-6)
    # cut off: δ_1 = 0 + 2 − ½ = 1.5, δ_0 = ½ − ½ = 0; A = .95 · 1.5 = 1.425, 1.5: the value after stands in for the score of 7
    assert got[1].columns["advantages"].tolist() == pytest.approx([1.425, 1.5], abs=1e-6)
    # returns .95125 .975 1 1.925 2, values all ½: Var(R − V) = Var(R), so nothing is explained
    assert explained == pytest.approx(0.0, abs=1e-6)
    whitened, _ = ppo.credit(answers, scores, goes_on, 0.0, one_process(truncated="bootstrap", lam=0.95))
    together = torch.cat([a.columns["advantages"] for a in whitened])
    assert together.mean().abs() < 1e-6 and together.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_kl_is_paid_in_the_reward_token_by_token():
    said = dict(old_logps=[-1.0, -2.0], ref_logps=[-1.5, -2.0], values=[0.0, 0.0], values_after=[0.0, 0.0])
    answer = scored(Example.of([1], [2, 3]), **said)
    (got,), _ = ppo.credit([answer], torch.tensor([1.0]), [False], 0.1, one_process(whiten=False, lam=1.0))
    # rewards −.1 · .5 and 0 + 1; λ = 1: the return is the sum of what is to come
    assert got.columns["returns"].tolist() == pytest.approx([0.95, 1.0], abs=1e-6)


def test_kl_in_the_loss_instead(tmp_path, llama):
    result = run(llama, tmp_path, ppo__kl_coef=0.0, ppo__kl_loss_coef=0.1)
    free = run(llama, tmp_path, ppo__kl_coef=0.0)
    assert "kl" in result.metrics[0] and "kl" not in free.metrics[0]  # without a coefficient no reference is kept
    assert metric(result, "grad_norm")[0] == pytest.approx(
        metric(free, "grad_norm")[0], abs=1e-6
    )  # KL and its gradient start at 0
    assert metric(result, "grad_norm")[-1] != pytest.approx(metric(free, "grad_norm")[-1], abs=1e-6)


def test_the_coefficient_follows_its_target(tmp_path, llama):
    low = run(llama, tmp_path, ppo__kl_target=1e-9, training__max_steps=12, training__learning_rate=1e-2)
    high = run(llama, tmp_path, ppo__kl_target=100.0, training__max_steps=12, training__learning_rate=1e-2)
    # at most 2 % a rollout: three rollouts of four steps, changed after the first (KL 0 is below any target) and the second
    assert metric(high, "kl_coef")[0] == 0.05 and metric(high, "kl_coef")[-1] == pytest.approx(0.05 * 0.98**2)
    assert metric(low, "kl_coef")[-1] == pytest.approx(0.05 * 0.98 * 1.02)


@pytest.mark.draws
def test_a_reward_model_scores_what_was_sampled(tmp_path, llama):
    made = load(ROOT / "configs/reward_tiny.yaml", {
        "model.name": llama, "output.dir": str(tmp_path / "rm"), "data.validation_split": 0, "training.eval_every": None, "output.samples": 0,
        "training.learning_rate": 1e-2,
    })  # fmt: skip
    rm = reward.train(made, rows=[{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(16)])
    keys = {
        "ppo__reward": None,
        "ppo__reward_model": str(rm.folder / "model"),
        "ppo__watch": "answer",
        "training__max_steps": 1,
    }
    result = run(llama, tmp_path, reward=None, **keys)
    assert result.metrics[0]["watched/answer"] == 0.0 and abs(result.metrics[0]["reward"]) > 1e-4
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000
    held_out = run(
        llama, tmp_path, rows=[*ROWS, *ROWS], reward=None, **keys, data__validation_split=0.25, training__eval_every=1
    )
    assert {"reward_held_out", "watched/answer_held_out"} <= set(held_out.metrics[0])
    other = tiny_folder(tmp_path / "other", tokenizer=sentencepiece_tokenizer())
    with pytest.raises(UserError, match="has another vocabulary than the policy"):
        run(other, tmp_path, reward=None, **keys)


def test_it_learns_what_is_rewarded(tmp_path, llama):
    """Even token ids pay: PPO finds out, with a critic that starts from nothing."""
    keys = {
        "training__max_steps": 60,
        "ppo__minibatches": 1,
        "training__learning_rate": 3e-3,
        "ppo__kl_coef": 0.0,
        "ppo__prompts_per_step": 32,
    }
    result = run(llama, tmp_path, rows=ROWS * 4, **keys)
    rewards = metric(result, "reward")
    assert sum(rewards[-10:]) / 10 > sum(rewards[:6]) / 6 + 0.2


def test_preflight_refuses_a_sampler_that_disagrees(tmp_path, llama, monkeypatch):
    real = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *a, **k: real(*a, **(k | {"temperature": 1.5})))
    with pytest.raises(UserError, match="preflight: sampler and trainer disagree"):
        run(llama, tmp_path)


def test_the_critic_does_not_throttle_the_policy(tmp_path, llama):
    """Rewards a hundred times as large: whitened advantages are the same, so the policy's update must be, too."""
    first = [
        run(llama, tmp_path, reward=lambda completion_ids, scale=scale: [scale * x for x in even_tokens(completion_ids)], training__max_steps=1, ppo__kl_coef=0.0, ppo__minibatches=1)
        for scale in (1, 100)
    ]  # fmt: skip
    small, large = (r.metrics[0] for r in first)
    assert large["grad_norm"] == pytest.approx(small["grad_norm"], rel=1e-4)
    assert large["critic_grad_norm"] == pytest.approx(100 * small["critic_grad_norm"], rel=1e-3)
    for a, b in zip(*(r.model.parameters() for r in first), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_reward_model_is_not_overwritten(tmp_path, llama):
    (tmp_path / "run" / "model").mkdir(parents=True)
    written.note(tmp_path / "run", "model/*")  # of an earlier run
    keys = {"ppo__reward": None, "ppo__reward_model": str(tmp_path / "run" / "model")}
    with pytest.raises(UserError, match=r"ppo.reward_model .* lies in the run folder"):
        run(llama, tmp_path, reward=None, **keys)


def test_a_tokenizer_with_one_special_token_and_a_projected_head(tmp_path):
    tokenizer = bytelevel_tokenizer(None, pad=None, eos="<|endoftext|>")
    name = tiny_folder(tmp_path / "m", "opt", tokenizer, word_embed_proj_dim=16)
    for critic in ("separate", "shared"):
        assert len(run(name, tmp_path, ppo__critic=critic, training__max_steps=1).metrics) == 1
