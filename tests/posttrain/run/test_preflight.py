"""Each check refuses its own fault before the first update, can be switched off, and says what passed."""

from dataclasses import replace

import pytest
import torch
from kit import run_loop

from loops import dpo, grpo, ppo, sft
from posttrain import models
from posttrain.errors import UserError
from posttrain.rollouts import sampling
from posttrain.run import preflight
from posttrain.tokens import examples
from posttrain.tokens.batch import collate

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
    with pytest.raises(
        UserError, match=r"preflight: sampler and trainer disagree by up to .*--preflight.sampler false"
    ):
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
