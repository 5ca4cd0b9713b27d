"""What posttrain.doctor says a run will take: memory, and seconds a step from counted work at measured rates."""

import re

import pytest
from kit import small_config, write_jsonl

from posttrain.errors import UserError
from posttrain.models import duration, rates
from posttrain.run import forecast

CHATS = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "one two"}]}] * 6
PROMPTS = [{"prompt": f"Hello {i}", "answer": "1"} for i in range(6)]
RATES = rates.Rates(products=1e9, narrow=2e9, few=1e9, attention=1e9, moved=1e9, softmax=1e9, start=1e-6)


@pytest.fixture
def asked(monkeypatch):
    """A machine of these rates; what was measured for."""
    calls = []

    def measure(shape, compute, device, tokens, length, rows):
        calls.append((tokens, length, rows))
        return RATES

    monkeypatch.setattr(rates, "measure", measure)
    return calls


def seconds_in(line: str) -> float:
    return float(re.match(r" *([\d.]+) s  ", line).group(1))


def test_the_lines_of_a_run(llama, tmp_path, asked):
    """Six rows, four a step, twice: four steps. The parts add up."""
    data = write_jsonl(tmp_path / "rows.jsonl", CHATS)
    small = {"data__name": data, "training__epochs": 2, "training__micro_batch_size": 2}
    config = small_config("sft", llama, tmp_path, **small)
    found = forecast.foretell(config, here := forecast.Here.of(config))
    ((tokens, length, rows),) = asked
    assert tokens == 2 * length and rows == 0 and found.steps == 4
    assert list(found.parts) == ["forward", "backward", "head", "optimiser"]
    # 2 micro-batches, all weights: 2 x tokens x 20,480, at a billion a second, is the products of a forward pass
    shape, size = here.shape, 4
    of_forward = (
        duration.Network(shape, size).forward(duration.Laid(tokens, 2 * length**2)).seconds(RATES, duration.TRAINING[4])
    )
    assert found.parts["forward"] == pytest.approx(2 * of_forward)
    lines = forecast.time_lines(config, here)
    assert lines[0].startswith(
        "measured here: 1 GFLOP/s in products of many tokens, 1 in those of a few rows, 1 in attention; 1 GB/s in activations, 1.0 in"
    )
    assert re.fullmatch(rf"6 rows: {length} tokens in a row on average, \d+ of them learned", lines[1])
    assert [line.split("  ")[-1] for line in lines[2:6]] == list(found.parts)
    assert re.fullmatch(r" +[\d.]+ s  a step, 4 steps: \d+ s \(beside it: loading, samples, evaluations\)", lines[6])
    assert sum(map(seconds_in, lines[2:6])) == pytest.approx(seconds_in(lines[6]), abs=0.03) and len(lines) == 7


def test_answers_of_a_length_that_nobody_knows(llama, tmp_path, asked):
    """At most 8 tokens: that, and a quarter of it. 2 prompts x 4 answers are sampled at once."""
    config = small_config("grpo", llama, tmp_path, data__name=write_jsonl(tmp_path / "rows.jsonl", PROMPTS))
    lines = forecast.time_lines(config, forecast.Here.of(config))
    assert asked[0][2] == 8 and len(asked) == 1
    assert re.match(
        r"6 prompts, of \d+ tokens on average; answers taken to have 8 \(max_new_tokens: more they cannot\)", lines[1]
    )
    assert lines[2].endswith("  sampling") and lines[-2].endswith(
        "s  a step, 3 steps: 0 s (beside it: loading, samples, evaluations)"
    )
    assert lines[-1].endswith("a step with answers of 2, 3 steps: 0 s") and seconds_in(lines[-1]) < seconds_in(
        lines[-2]
    )


def test_a_student_that_answers_itself(llama, tmp_path, asked):
    """Half of four rows, answers of 6 tokens; a teacher beside it."""
    data = write_jsonl(tmp_path / "rows.jsonl", CHATS)
    small = {"data__name": data, "distill__teacher": llama, "distill__on_policy": 0.5}
    config = small_config("distill", llama, tmp_path, **small)
    found = forecast.foretell(config, forecast.Here.of(config))
    assert (
        asked[0][2] == 2 and next(iter(found.parts)) == "sampling (the longest answers)" and found.parts["teacher"] > 0
    )
    given = small_config(
        "distill", llama, tmp_path, **small | {"distill__on_policy": 0.0, "distill__max_new_tokens": None}
    )
    assert "sampling (the longest answers)" not in forecast.foretell(given, forecast.Here.of(given)).parts


def test_what_is_not_known_is_said(llama, tmp_path, asked):
    config = small_config("dpo", llama, tmp_path, data__name=str(tmp_path / "none.jsonl"), data__max_length=64)
    lines = forecast.time_lines(config, forecast.Here.of(config))
    assert (
        lines[1].startswith("the rows cannot be read (")
        and "64 tokens in a row on average, 32 of them learned" in lines[1]
    )
    assert lines[-1].endswith("a step; how many steps depends on the rows (beside it: loading, samples, evaluations)")


def test_what_cannot_be_counted(llama, tmp_path):
    from types import SimpleNamespace

    config = small_config("sft", llama, tmp_path)
    here = forecast.Here.of(config)
    assert forecast.uncounted(config, here) is None
    experts = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_experts_per_tok=2))
    mixture = forecast.Here(experts, here.shape, here.compute, here.device)
    assert forecast.time_lines(config, mixture) == [
        "not estimated: of a mixture of experts a part alone works for each token"
    ]
    with pytest.raises(UserError, match="its config cannot be read, so nothing can be estimated"):
        forecast.Here.of(small_config("sft", "nowhere/at-all", tmp_path))
    with pytest.raises(UserError, match="makes its model and has no rows"):
        forecast.Here.of(small_config("pretrain", None, tmp_path))


def test_how_long_in_words():
    assert forecast._minutes(2.0, 10) == ", 10 steps: 20 s" and forecast._minutes(2.0, 1) == ", 1 step: 2 s"
    assert (
        forecast._minutes(2.0, 300) == ", 300 steps: 10 min" and forecast._minutes(2.0, 9000) == ", 9,000 steps: 5.0 h"
    )


PAIRS = [{"prompt": "Hello", "chosen": "one two", "rejected": "three"}] * 6
JUDGED = [{"prompt": "Hello", "completion": "one two", "label": True}] * 6


@pytest.mark.parametrize(
    ("method", "rows", "parts"),
    [
        ("dpo", PAIRS, ["forward", "backward", "head", "reference", "optimiser"]),
        ("simpo", PAIRS, ["forward", "backward", "head", "optimiser"]),
        ("kto", JUDGED, ["forward", "backward", "head", "reference", "answers behind other prompts", "optimiser"]),
        ("reward", PAIRS, ["forward", "backward", "optimiser"]),
        (
            "ppo",
            PROMPTS,
            ["sampling", "forward", "backward", "head", "old log-probs", "reference", "critic", "optimiser"],
        ),
    ],
)
def test_every_other_loop(llama, tmp_path, asked, method, rows, parts):
    more = {"dpo__precompute": False} if method == "dpo" else {}
    config = small_config(method, llama, tmp_path, data__name=write_jsonl(tmp_path / "rows.jsonl", rows), **more)
    found = forecast.foretell(config, forecast.Here.of(config))
    assert list(found.parts) == parts and min(found.parts.values()) > 0 and found.steps
