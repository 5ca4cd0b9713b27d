"""Each check refuses its own fault before the first update, can be switched off, and says what passed."""

from dataclasses import replace

import pytest
import torch
from small import folder

from loops import dpo, grpo, ppo, sft
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.rollouts import sampling
from posttrain.run import preflight
from posttrain.tokens import examples
from posttrain.tokens.batch import collate

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]
PROMPTS = [{"prompt": f"Question {i}?"} for i in range(4)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("llama"))


def config(tmp_path, model, method="sft", **changes):
    rl = {f"{method}.prompts_per_step": 2, f"{method}.max_new_tokens": 6} if method in ("grpo", "ppo") else {}
    shared = {"model.name": model, "output.dir": str(tmp_path / "run"), "output.samples": 0, "training.max_steps": 2}
    if method == "ppo":
        rl |= {"ppo.minibatches": 1, "data.validation_split": 0.0, "training.eval_every": None}
    return load(
        ROOT / f"configs/{method}_tiny.yaml", shared | rl | {k.replace("__", "."): v for k, v in changes.items()}
    )


def test_what_passed_is_told_once(tmp_path, llama, capsys):
    sft.train(config(tmp_path, llama, preflight__gradients=False), rows=ROWS)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("preflight")]
    assert lines == [
        "preflight passed: 8 rows, each with a supervised token (0 left out, 0.0%); answers end with <|im_end|>",
        "preflight switched off: gradients",
    ]


def test_a_row_without_a_supervised_token(tmp_path, llama, monkeypatch):
    real = examples._encode

    def masked(rows, encoder, tokenizer):
        made = real(rows, encoder, tokenizer)
        made.items[2] = made.items[2].muted()
        return made

    monkeypatch.setattr(examples, "_encode", masked)
    with pytest.raises(
        UserError, match=r"preflight: 1 of 8 rows have no supervised token, first rows, row 3: .*--preflight.rows false"
    ):
        sft.train(config(tmp_path, llama), rows=ROWS)
    assert len(sft.train(config(tmp_path, llama, preflight__rows=False), rows=ROWS).metrics) == 2


def test_a_stop_token_that_is_never_taught(tmp_path, llama, monkeypatch):
    """The museum's `ids != pad` with pad == eos, as it would stand in a collate function."""

    def careless(micro, pad_id):
        batch = collate(micro, pad_id)
        return replace(batch, completion_mask=batch.completion_mask & (batch.input_ids != end))

    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(llama).eos_token_id
    monkeypatch.setattr(sft, "collate", careless)
    with pytest.raises(UserError, match=r"preflight: no row of the first step teaches a stop token \(<\|im_end\|>\)"):
        sft.train(config(tmp_path, llama), rows=ROWS)
    off = sft.train(config(tmp_path, llama, preflight__stop_token=False), rows=ROWS)
    assert "p_stop" not in off.metrics[0]


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo", "ppo"])
def test_a_tensor_without_a_gradient(tmp_path, llama, monkeypatch, method):
    real = models.load_policy

    def with_an_idle_weight(*arguments):
        model, *rest = real(*arguments)
        model.register_parameter("idle", torch.nn.Parameter(torch.zeros(3)))
        return model, *rest

    monkeypatch.setattr(models, "load_policy", with_an_idle_weight)
    loop, rows = {"sft": (sft, ROWS), "dpo": (dpo, None), "grpo": (grpo, PROMPTS), "ppo": (ppo, PROMPTS)}[method]
    rows = rows or [{"prompt": "Q?", "chosen": f"Yes {i}.", "rejected": "No."} for i in range(4)]
    given = (
        {"reward": lambda completion_ids: [len(set(ids)) for ids in completion_ids]}
        if method in ("grpo", "ppo")
        else {}
    )
    changes = {"model__adapter": "none"} if method == "dpo" else {}
    with pytest.raises(UserError, match=r"preflight: 1 trainable tensors got no finite gradient, first .*idle"):
        loop.train(config(tmp_path, llama, method, **changes), rows=rows, **given)
    off = loop.train(config(tmp_path, llama, method, preflight__gradients=False, **changes), rows=rows, **given)
    assert len(off.metrics) == 2


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_sampler_that_disagrees(tmp_path, llama, monkeypatch, method):
    loop = {"grpo": grpo, "ppo": ppo}[method]
    real = sampling.sample

    def hotter(*arguments, temperature, **named):
        return real(*arguments, temperature=temperature * 1.1, **named)

    monkeypatch.setattr(sampling, "sample", hotter)

    def reward(completion_ids):
        return [len(set(ids)) for ids in completion_ids]

    with pytest.raises(
        UserError, match=r"preflight: sampler and trainer disagree by up to .*--preflight.sampler false"
    ):
        loop.train(config(tmp_path, llama, method), rows=PROMPTS, reward=reward)
    off = loop.train(config(tmp_path, llama, method, preflight__sampler=False), rows=PROMPTS, reward=reward)
    assert len(off.metrics) == 2


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (lambda completion_ids: [0.0] * len(completion_ids), "all rewards are 0: the problems are too hard"),
        (lambda completion_ids: [1.0] * len(completion_ids), "the mean reward is 1: the problems are too easy"),
    ],
)
def test_dead_groups_are_told_with_the_reason(tmp_path, llama, capsys, reward, reason):
    grpo.train(config(tmp_path, llama, "grpo"), rows=PROMPTS, reward=reward)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: every group")]
    assert len(told) == 1 and reason in told[0]
    grpo.train(
        config(tmp_path, llama, "grpo", preflight__dead_groups=False, output__overwrite=True),
        rows=PROMPTS,
        reward=reward,
    )
    assert "every group of the first" not in capsys.readouterr().err


def test_dead_groups_because_nothing_can_be_read(tmp_path, llama, capsys):
    rows = [row | {"answer": "7"} for row in PROMPTS]
    grpo.train(config(tmp_path, llama, "grpo"), rows=rows)
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
