"""Each check refuses its own fault before the first update, can be switched off, and says what passed."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import run_loop, tiny_model
from safetensors.torch import load_file, save_file

from loops import dpo, grpo, ppo, sft
from posttrain import models
from posttrain.errors import UserError
from posttrain.models.logps import CompletionLogps
from posttrain.rollouts import sampling
from posttrain.run import preflight
from posttrain.tokens import examples
from posttrain.tokens.batch import collate, pad_values

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]
PROMPTS = [{"prompt": f"Question {i}?"} for i in range(4)]
PAIRS = [{"prompt": "Q?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(4)]
LOOPS = {"sft": (sft, ROWS), "dpo": (dpo, PAIRS), "grpo": (grpo, PROMPTS), "ppo": (ppo, PROMPTS)}


def run(model, tmp_path, method="sft", **changes):
    """Two steps of a loop, on its rows and on rewards that differ."""
    loop, rows = LOOPS[method]
    rl = {}
    if method in ("grpo", "ppo"):
        rl = {
            "reward": lambda completion_ids: [len(set(ids)) for ids in completion_ids],
            f"{method}__max_new_tokens": 6,
        }
    if method == "ppo":
        rl |= {"ppo__prompts_per_step": 2, "ppo__minibatches": 1}
    return run_loop(loop, model, tmp_path, **{"rows": rows, "training__max_steps": 2} | rl | changes)


def test_what_passed_is_told_once(tmp_path, llama, capsys):
    run(llama, tmp_path, preflight__gradients=False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("preflight")]
    assert lines == [
        "preflight passed: 8 rows, each with a supervised token (0 left out, 0.0%); answers end with <|im_end|>",
        "preflight switched off: gradients",
    ]


def test_a_row_without_a_supervised_token(tmp_path, llama, monkeypatch):
    real = examples._encode

    def masked(*given):
        made = real(*given)
        made.items[2] = made.items[2].muted()
        return made

    monkeypatch.setattr(examples, "_encode", masked)
    with pytest.raises(
        UserError, match=r"preflight: 1 of 8 rows have no supervised token, first rows, row 3: .*--preflight.rows false"
    ):
        run(llama, tmp_path)
    assert len(run(llama, tmp_path, preflight__rows=False).metrics) == 2


def test_a_stop_token_that_is_never_taught(tmp_path, llama, monkeypatch):
    """The museum's `ids != pad` with pad == eos, as it would stand in a collate function."""

    def careless(micro, pad_id):
        batch = collate(micro, pad_id)
        return replace(batch, completion_mask=batch.completion_mask & (batch.input_ids != end))

    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(llama).eos_token_id
    monkeypatch.setattr(sft, "collate", careless)
    with pytest.raises(UserError, match=r"preflight: no row of the first step teaches a stop token \(<\|im_end\|>\)"):
        run(llama, tmp_path)
    off = run(llama, tmp_path, preflight__stop_token=False)
    assert "p_stop" not in off.metrics[0]


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo", "ppo"])
def test_a_tensor_without_a_gradient(tmp_path, llama, monkeypatch, method):
    real = models.load_policy

    def with_an_idle_weight(*arguments):
        model, *rest = real(*arguments)
        model.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))
        return model, *rest

    monkeypatch.setattr(models, "load_policy", with_an_idle_weight)
    with pytest.raises(UserError, match=r"preflight: 1 trainable tensors got no finite gradient, first .*idle"):
        run(llama, tmp_path, method)
    off = run(llama, tmp_path, method, preflight__gradients=False)
    assert len(off.metrics) == 2


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_sampler_that_disagrees(tmp_path, llama, monkeypatch, method):
    real = sampling.sample

    def hotter(*arguments, temperature, **named):
        return real(*arguments, temperature=temperature * 1.1, **named)

    monkeypatch.setattr(sampling, "sample", hotter)
    with pytest.raises(UserError, match=r"preflight: sampler and trainer disagree by .*--preflight.sampler false"):
        run(llama, tmp_path, method)
    off = run(llama, tmp_path, method, preflight__sampler=False)
    assert len(off.metrics) == 2


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (lambda completion_ids: [0.0] * len(completion_ids), "all rewards are 0: the problems are too hard"),
        (lambda completion_ids: [1.0] * len(completion_ids), "the mean reward is 1: the problems are too easy"),
    ],
)
def test_dead_groups_are_told_with_the_reason(tmp_path, llama, capsys, reward, reason):
    run(llama, tmp_path, "grpo", reward=reward)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: every group")]
    assert len(told) == 1 and reason in told[0]
    run(llama, tmp_path, "grpo", reward=reward, preflight__dead_groups=False)
    assert "every group of the first" not in capsys.readouterr().err


def test_dead_groups_because_nothing_can_be_read(tmp_path, llama, capsys):
    rows = [row | {"answer": "7"} for row in PROMPTS]
    run(llama, tmp_path, "grpo", rows=rows, reward=None)
    assert (
        "100% of the answers hold no number that the reward can read: teach the format first" in capsys.readouterr().err
    )


def test_stop_tokens_outside_the_embeddings():
    class Tokenizer:
        def convert_ids_to_tokens(self, ids):
            return [f"<{i}>" for i in ids]

    class Run:
        preflight = preflight.Preflight(type("On", (), {"stop_token": True})(), print)
        config = type("Config", (), {"method": "grpo"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight.template, "stop_ids", lambda tokenizer: [3, 9])
        model = type("M", (), {"get_input_embeddings": lambda self: torch.nn.Embedding(9, 2)})()
        with pytest.raises(UserError, match="the stop tokens <3>, <9> lie outside the model's 9 embeddings"):
            preflight.stop_token(Run(), model, Tokenizer())
        patch.setattr(preflight.template, "stop_ids", lambda tokenizer: [3, 8])
        preflight.stop_token(Run(), model, Tokenizer())
        assert Run.preflight.lines == ["answers end with <3>, <8>"]


# ---------------------------------------------------------------- the judgements themselves, on numbers


class Checked:
    """What the checks ask of a run."""

    def __init__(self, exact):
        self.exact = self.rows_are_apart = exact
        self.preflight = preflight.Preflight(SimpleNamespace(start=True, sampler=True), lambda line: None)


def refused(check, exact, *arguments, **named):
    try:
        check(Checked(exact), *arguments, **named)
    except UserError as problem:
        return str(problem)


def compared(run, *micro_batches):
    """Each four [B, T], or the four of one."""
    for micro in micro_batches if isinstance(micro_batches[0], tuple) else [micro_batches]:
        preflight.sampler(run, *micro)
    preflight.sampled_alike(run)


def sampled(temperature, noise=0.0, shift=0.0, rows=16, length=48, width=400):
    """(trainer's log-probs, sampler's, entropy, active): tokens drawn at temperature 1, trained at another."""
    torch.manual_seed(0)
    logits = 1.5 * torch.randn(rows, length, width)
    said = logits.log_softmax(-1)
    tokens = torch.distributions.Categorical(logits=logits).sample()[..., None]
    trained = (logits / temperature).log_softmax(-1)
    entropy = -(trained.exp() * trained).sum(-1)
    logps = trained.gather(-1, tokens)[..., 0]
    return (
        logps + noise * torch.randn_like(logps) + shift,
        said.gather(-1, tokens)[..., 0],
        entropy,
        torch.ones_like(logps).bool(),
    )


@pytest.mark.parametrize(
    ("exact", "case", "problem"),
    [
        (True, dict(temperature=1.0, noise=1e-4), None),  # a healthy 28-layer model in float32: 6e-5 on average
        (True, dict(temperature=1.0, noise=3e-3), "on average"),
        (True, dict(temperature=1.02), "on average"),
        (False, dict(temperature=1.0, noise=0.02), None),  # bf16 rounds
        (False, dict(temperature=1.0, noise=0.08), "on average"),
        (False, dict(temperature=1.02, noise=0.02), "as if it had sampled at 0.98"),  # 1/1.02 = 0.980
        (False, dict(temperature=0.98, noise=0.02), "as if it had sampled at 1.02"),  # 1/0.98 = 1.020
        (False, dict(temperature=1.0, noise=0.02, shift=0.02), "all to one side"),
        (False, dict(temperature=1.0, noise=float("nan")), "on average"),
    ],
)  # fmt: skip
def test_rounding_is_told_from_another_computation(exact, case, problem):
    said = refused(compared, exact, *sampled(**case))
    assert said is None if problem is None else problem in said, said


def test_a_healthy_deep_model_in_float32_passes_and_in_bf16_a_wrong_temperature_does_not():
    """28 layers: single tokens differ by 5e-4 in float32, by up to 1.5 nats in bf16 (a random network is chaotic)."""
    deep = tiny_model("llama", 411, num_hidden_layers=28)
    policy, prompts = CompletionLogps(deep.train()), [[5, 6, 7, 8], [9, 10]] * 8
    for dtype, temperature, problem in (
        (None, 1.0, None),
        (None, 1.02, "on average"),
        (torch.bfloat16, 1.05, "disagree"),
    ):
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            rollout = sampling.sample(
                deep,
                prompts,
                max_new_tokens=32,
                stop_ids=[3],
                pad_id=0,
                uniforms=sampling.draw_uniforms(16, 32, seed=0, step=0),
            )
            batch = collate(rollout.examples(), 0)
            logps, entropy = policy(batch, temperature)
        said = pad_values(rollout.logps, rollout.examples(), batch.input_ids.shape[1])
        verdict = refused(compared, dtype is None, logps, said, entropy, batch.active)
        assert verdict is None if problem is None else problem in verdict, (dtype, temperature, verdict)


def answers(margin, rows=16, length=100):
    """(policy's log-probs of whole answers, the reference's, active): off by N(0, margin) nats."""
    torch.manual_seed(0)
    policy = -100 - 10 * torch.rand(rows)
    return policy, policy + margin * torch.randn(rows), torch.ones(rows, length).bool()


@pytest.mark.parametrize(
    ("exact", "same_rows", "margin", "off"),
    [
        (True, True, 0.0, False),
        (True, False, 1e-3, False),  # other rows beside them: float32 rounds by 1e-4 a token, 1e-3 over 100
        (True, True, 0.1, True),
        (False, False, 0.2, False),  # bf16 by 0.02 a token: 0.2 over 100
        (False, False, 2.0, True),  # −log σ(0.1 · N(0, 2)) is 0.70 on average: a mean loss would pass it
        (True, True, float("nan"), True),
    ],
)
def test_policy_and_reference_are_compared_answer_by_answer(exact, same_rows, margin, off):
    said = refused(preflight.reference, exact, *answers(margin), same_rows=same_rows)
    assert (said is not None) == off and (said is None or "nats on an answer of 100 tokens" in said)


def test_one_answer_among_many_that_the_reference_says_otherwise():
    policy, reference, active = answers(0.0)
    reference[7] += 0.5
    active[7, 60:] = False
    said = refused(preflight.reference, True, policy, reference, active, same_rows=True)
    assert said.startswith(
        "preflight: policy and reference differ by 0.5 nats on an answer of 60 tokens (0.015 allowed)"
    )
    active[7] = False  # a muted row is no answer
    assert refused(preflight.reference, True, policy, reference, active, same_rows=True) is None


def test_unlikely_answers_beside_other_rows_in_bf16():
    """As on SmolLM2: hand-written answers of 22 nats, whose reference was computed in another batch. 0.50 / √6 = 0.206 on
    one of them, √(Σ gap² / tokens / 16) = 0.061 over all. With the gaps of all answers twice as large: 0.122."""
    gaps = torch.tensor([0, 0, 0, 0, 0, 0.0435, 0.0655, 0.5034, 0, 0, 0, 0, 0, 0.1017, 0.2423, 0.1981])
    lengths = torch.tensor([13, 13, 9, 9, 9, 6, 6, 6, 10, 10, 11, 11, 11, 7, 7, 7])
    active = torch.arange(13) < lengths[:, None]
    policy = -3.0 * lengths
    assert refused(preflight.reference, False, policy, policy + gaps, active, same_rows=False) is None
    said = refused(preflight.reference, False, policy, policy + 2 * gaps, active, same_rows=False)
    assert (
        "by 1 nats on an answer of 6 tokens (1.2 allowed), by 0.12 nats per √token over all of them (0.12 allowed)"
        in said
    )


def test_what_to_do_about_a_nan(tmp_path, llama):
    rl = SimpleNamespace(config=SimpleNamespace(method="ppo"), step=3)
    policy = torch.nn.Linear(2, 1)
    assert preflight.why_not_finite(rl, policy) == "Lower training.learning_rate, or look at the rewards of this step"
    rl.step, rl.config.method = 0, "sft"
    assert preflight.why_not_finite(rl, policy) == "Look at the rows of this step"
    there = Path(shutil.copytree(llama, tmp_path / "m"))
    weights = load_file(there / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, there / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"step 1: the loss is nan .* model.model.norm.weight held NaN or infinity before: is"
    ):
        run(str(there), tmp_path)


def test_a_first_rollout_of_which_no_answer_ends_is_told(tmp_path, llama, capsys):
    for method in ("grpo", "ppo"):
        run(llama, tmp_path, method, **{f"{method}__max_new_tokens": 1}, training__max_steps=1)
        said = (
            f"warning: no answer of the first rollout ended within {method}.max_new_tokens: the reward may see none of"
        )
        assert said in capsys.readouterr().err


def test_rounding_that_moves_only_uncertain_tokens_is_no_other_temperature():
    """A trained model in bf16 is sure of most tokens (gap 0) and rounds the few others: 20 of 350 with a noise of 0.15
    nats. A slope from 20 tokens is off by up to 0.04, which an error that takes all tokens alike (0.004) would call
    another temperature in a third of all runs. One of 1.3 is seen all the same."""
    generator = torch.Generator().manual_seed(0)
    false, seen = 0, 0
    for _ in range(100):
        sampler_logps, entropy = torch.full((1, 350), -0.001), torch.full((1, 350), 0.001)
        rare = slice(0, 20)
        sampler_logps[0, rare], entropy[0, rare] = -0.5 - 2.0 * torch.rand(20, generator=generator), 1.0
        noise = torch.zeros(1, 350)
        noise[0, rare] = 0.15 * torch.randn(20, generator=generator)
        active = torch.ones(1, 350, dtype=torch.bool)
        said = preflight.disagreement(sampler_logps + noise, sampler_logps, entropy, active, exact=False)
        false += said is not None
        warmer = sampler_logps + 0.3 * (sampler_logps + entropy) + noise
        seen += preflight.disagreement(warmer, sampler_logps, entropy, active, exact=False) is not None
    assert false <= 2 and seen >= 90, (false, seen)


def micro_batch(slope, bend):
    """37 tokens that the model is sure of, and three that it is not, 5, 2 and 1 nats below what it expects."""
    surprise = torch.cat([torch.tensor([-5.0, -2.0, -1.0]), torch.full((37,), 0.002)])[None]
    gap = slope * surprise
    gap[0, 1] += bend
    entropy = torch.full_like(gap, 0.5)
    return surprise - entropy + gap, surprise - entropy, entropy, torch.ones_like(gap, dtype=torch.bool)


def test_a_slope_that_one_token_decides_waits_for_more():
    """SmolLM2 after SFT, bf16: in one of six micro-batches 1.07 stood at 4.5 errors, decided by (25 + 4 + 1)² / (625 + 16 +
    1) = 1.4 tokens, in the next it was something else. Over all of the step it was nothing."""
    healthy = [micro_batch(0.07, 0.02), micro_batch(-0.05, -0.01), micro_batch(0.01, 0.03), micro_batch(-0.03, 0.0)]
    assert refused(compared, False, healthy[0]) is None
    assert refused(compared, False, *healthy) is None
    # The same slope in all of them: 7 % off, decided by 5.6 tokens.
    warm = [micro_batch(0.07, bend) for bend in (0.02, -0.01, 0.03, 0.01)]
    assert "as if it had sampled at 1.06" in refused(compared, False, *warm)
    assert "by 0.06 nats on average" in refused(compared, False, micro_batch(0.3, 0.02))  # 0.3 (5 + 2 + 1) / 40
    assert refused(compared, False, *[micro_batch(0.0, bend) for bend in (0.02, -0.02)]) is None


def test_tokens_are_compared_once_all_of_the_first_step_are_there():
    run = Checked(False)
    preflight.sampler(run, *micro_batch(0.3, 0.02))
    assert not run.preflight.lines
    with pytest.raises(UserError, match=r"0\.06 nats on average"):
        preflight.sampled_alike(run)
    preflight.sampled_alike(run)  # nothing is left of it
    assert not run.preflight.lines


@pytest.mark.parametrize(("rare", "warm", "least", "most"), [(3, 0.0, 0, 5), (12, 0.0, 0, 5), (25, 0.0, 0, 5), (25, 0.3, 500, 500), (12, 0.3, 440, 500)])  # fmt: skip
def test_how_often_a_rollout_of_few_uncertain_tokens_is_refused(rare, warm, least, most):
    """Of 500 with 150 tokens each, `rare` of them uncertain, rounded by 0.1 times the root of how rare they are."""
    generator, refusals = torch.Generator().manual_seed(1), 0
    for _ in range(500):
        surprise = torch.full((1, 150), 0.001)
        surprise[0, :rare] = -torch.empty(rare).exponential_(0.5, generator=generator)
        gap = torch.zeros(1, 150)
        gap[0, :rare] = 0.1 * torch.randn(rare, generator=generator) * surprise[0, :rare].abs().sqrt()
        gap[0, :rare] += warm * surprise[0, :rare]
        entropy, active = torch.full((1, 150), 0.5), torch.ones(1, 150, dtype=torch.bool)
        said = preflight.disagreement(surprise - entropy + gap, surprise - entropy, entropy, active, exact=False)
        refusals += said is not None
    assert least <= refusals <= most, refusals
