"""What a config's steps look like, from some of its rows, without its model."""

import pytest
from kit import small_config, write_jsonl, yaml_config

from posttrain.models.duration import Row
from posttrain.run import typical
from posttrain.tokens.batch import Example
from posttrain.tokens.examples import Pair

CHATS = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "one two"}]}] * 5
PAIRS = [{"prompt": "Hello", "chosen": "one two", "rejected": "three"}] * 5
JUDGED = [{"prompt": "Hello", "completion": "one two", "label": True}] * 5
PROMPTS = [{"prompt": f"Hello {i}", "answer": "1"} for i in range(5)]


@pytest.mark.parametrize(
    ("method", "rows", "said", "changes"),
    [
        ("sft", CHATS, "5 rows", {}),
        ("distill", CHATS, "5 rows", {}),
        ("dpo", PAIRS, "5 pairs", {}),
        ("simpo", PAIRS, "5 pairs", {}),
        ("kto", JUDGED, "5 rows", {}),
        ("reward", PAIRS, "5 pairs", {}),
        ("reward", JUDGED, "5 rows", {"reward__loss": "outcome", "reward__center_coef": 0.0}),
        ("grpo", PROMPTS, "5 prompts", {}),
        ("ppo", PROMPTS, "5 prompts", {}),
    ],
)
def test_rows_are_encoded_as_the_loop_encodes_them(llama, tmp_path, method, rows, said, changes):
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = small_config(method, llama, tmp_path, data__name=data, data__max_length=100, **changes)
    read = typical.read(config, 100)
    assert (read.count, read.said) == (5, said) and len(read.items) == 5
    if method in typical.ROLLOUTS:
        return
    (window, *_) = typical.windows_of(config, read.items, 100)
    assert sum(map(len, window)) == 4 * (2 if said.endswith("pairs") else 1)  # training.batch_size
    for row in window[0]:
        assert row.tokens == row.prompt + row.learned  # an answer stands at the end


def test_some_of_many_rows(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(typical, "LOOKED_AT", 2)
    data = write_jsonl(tmp_path / "rows.jsonl", CHATS)
    config = small_config("sft", llama, tmp_path, data__name=data)
    read = typical.read(config, 100)
    assert (read.count, len(read.items), read.said) == (
        5,
        2,
        "5 rows, 2 looked at",
    )  # every third: the first, the fourth
    stream = small_config(
        "sft", llama, tmp_path, data__name=data, data__streaming=True, training__max_steps=7, data__validation_split=0,
        training__eval_every=None,
    )  # fmt: skip
    read = typical.read(stream, 100)
    assert (read.count, len(read.items)) == (None, 2) and typical.steps_of(stream, None) == 7


def test_rows_that_cannot_be_read(llama, tmp_path):
    """As long as they may be: 20 tokens, 10 of them learned."""
    config = small_config("dpo", llama, tmp_path, data__name=str(tmp_path / "none.jsonl"))
    read = typical.read(config, 20)
    assert read.count is None and read.said.startswith("the rows cannot be read (")
    assert read.items[0] == Pair(*[Example.of([0] * 10, [1] * 10)] * 2) and len(read.items) == 4
    config = small_config("grpo", llama, tmp_path, data__name=str(tmp_path / "none.jsonl"))  # answers of 8 tokens
    assert typical.read(config, 20).items == [[0] * 12]


def row(prompt: int, answer: int) -> Example:
    return Example.of(list(range(prompt)), list(range(answer)))


def test_micro_batches():
    """Long ones together, as in training; the short last step is left out; pairs are chosen and then rejected rows."""
    config = yaml_config("sft_tiny", training__batch_size=4, training__micro_batch_size=2)
    windows = typical.windows_of(config, [row(2, 1)] * 3 + [row(5, 3)] * 3, 100)
    assert len(windows) == 1 and [len(micro) for micro in windows[0]] == [2, 2]
    assert windows[0][0][0].tokens >= windows[0][1][0].tokens
    packed = yaml_config("sft_tiny", training__batch_size=4, training__micro_batch_size=1, training__packing=True)
    assert typical.windows_of(packed, [row(2, 1)] * 4, 6) == [[[Row(6, 2)], [Row(6, 2)]]]
    pair = yaml_config("dpo_tiny", training__batch_size=1, training__micro_batch_size=1)
    ((micro,),) = typical.windows_of(pair, [Pair(row(5, 3), row(5, 2))], 100)
    assert [(r.tokens, r.learned, r.prompt) for r in micro] == [(8, 3, 5), (7, 2, 5)] and micro[0].group == micro[
        1
    ].group


def test_answers_that_are_made_up():
    """Two prompts, two answers of 4 tokens to each, in two minibatches: one prompt's each, in micro-batches of one."""
    small = {
        "grpo__prompts_per_step": 2,
        "grpo__group_size": 2,
        "grpo__minibatches": 2,
        "training__micro_batch_size": 1,
    }
    config = yaml_config("grpo_tiny", training__share_prompts=True, **small)
    assert typical.window_of_answers(config, [3, 9], 4) == [[Row(7, 4, 3, 0)], [Row(7, 4, 3, 0)]]
    apart = yaml_config("grpo_tiny", training__share_prompts=False, **small)  # the longest first
    assert typical.window_of_answers(apart, [3, 9], 4) == [[Row(13, 4, 9, 1)], [Row(13, 4, 9, 1)]]


def test_how_many_steps():
    sft = yaml_config("sft_tiny", training__batch_size=4, training__epochs=3, training__max_steps=None)
    assert typical.steps_of(sft, 9) == 9 and typical.steps_of(sft, None) is None  # three, the last one short, thrice
    keys = {"grpo__prompts_per_step": 4, "grpo__minibatches": 2, "grpo__inner_epochs": 3, "training__max_steps": None}
    grpo = yaml_config("grpo_tiny", training__epochs=1, **keys)
    assert typical.steps_of(grpo, 9) == 2 * 2 * 3  # a short last rollout is left for the next epoch
    assert typical.steps_of(yaml_config("grpo_tiny", training__max_steps=5), 9) == 5
