"""Suite perplexity: sums over sums, each token once, whatever the batch, the row or the window."""

import json
import math

import pytest
import torch
from told import Told, scores
from transformers import AutoModelForCausalLM

from posttrain.config.suites import Perplexity as Options
from posttrain.errors import UserError
from posttrain.evaluation.perplexity import Perplexity, windows
from posttrain.evaluation.subjects import Subject
from posttrain.tokens import template
from posttrain.tokens.batch import Example


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


TEXTS = ["the quick brown fox", "Hello. What is your name?", "48 / 2 = 24 clips. " * 6, "one two three"] * 3


def test_the_trust_lists_numbers(tmp_path):
    """NLL {4} and {1, 1, 1} ⇒ e^(7/4) = 5.754603, not 12.18."""
    data = write(tmp_path / "t.jsonl", [{"text": "short"}, {"text": "longer"}])
    told = Told(reads=lambda text: -torch.tensor([4.0] if "short" in text else [1.0, 1.0, 1.0]))
    found = scores(Perplexity(Options(data=data))(told))
    assert found["perplexity"].value == pytest.approx(5.754603, abs=1e-6) and found["perplexity"].better == "lower"
    assert found["perplexity"].weights == [1, 3] and found["perplexity"].n == 2
    # 7 nats = 10.098865 bits; what is predicted of "short" and "longer" is all but their first token
    size = sum(found["bits_per_byte"].weights)
    assert found["bits_per_byte"].value == pytest.approx(10.098865 / size, abs=1e-6) and 6 <= size <= 9


def test_it_is_what_transformers_says_of_each_text_alone(tmp_path, llama):
    data = write(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS])
    subject, _ = Subject.load(llama)
    model, total, count = AutoModelForCausalLM.from_pretrained(llama).eval(), 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([template.text_example(subject.tokenizer, text).input_ids])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()  # mean over all but the first
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    found = {}
    for batch_size in (1, 8):
        subject.batch_size = batch_size
        found[batch_size] = scores(Perplexity(Options(data=data))(subject))["perplexity"]
        assert found[batch_size].value == pytest.approx(math.exp(total / count), rel=1e-5)
        assert sum(found[batch_size].weights) == count
    assert found[1].items == pytest.approx(found[8].items, rel=1e-5) and found[1].weights == found[8].weights


def test_of_a_conversation_the_answers_count(tmp_path, llama):
    subject, _ = Subject.load(llama)
    turns = [("user", "Who?"), ("assistant", "Me."), ("user", "And who else? " * 3), ("assistant", "You.")]
    data = write(tmp_path / "c.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}] * 2)
    outcome = Perplexity(Options(data=data))(subject)
    end = 1  # the turn-end token of each answer
    tokens = sum(len(subject.tokenizer(text)["input_ids"]) + end for text in ("Me.", "You."))
    assert scores(outcome)["perplexity"].weights == [tokens, tokens]
    assert outcome.records[0]["bytes"] == len("Me.You.") and outcome.records[0]["prompt"] == "Who?"


def test_a_window_is_read_with_what_is_left_of_its_context(tmp_path, llama):
    data = write(tmp_path / "t.jsonl", [{"text": TEXTS[2]}] * 2)
    subject, _ = Subject.load(llama)
    whole, cut = (scores(Perplexity(Options(data=data, max_length=n))(subject))["perplexity"] for n in (200, 8))
    assert whole.weights == cut.weights and whole.value != cut.value  # each token once, from another context
    assert [w.input_ids for w in windows(Example([1, 2, 3, 4, 5, 6], [True] * 6), 3)] == [[1, 2, 3], [3, 4, 5], [5, 6]]
    assert windows(Example([1, 2, 3, 4], [False, False, False, True]), 2) == [Example([3, 4], [False, True])]
    with pytest.raises(UserError, match=r"max_length 300: .* reads at most 256 tokens"):
        Perplexity(Options(data=data, max_length=300))(subject)


def test_a_document_of_which_nothing_is_predicted_is_named(tmp_path):
    data = write(tmp_path / "t.jsonl", [{"text": "fine"}, {"text": "empty"}])
    told = Told(reads=lambda text: torch.ones(0 if "empty" in text else 2))
    with pytest.raises(UserError, match=r"t.jsonl, row 2: nothing in it is predicted"):
        Perplexity(Options(data=data))(told)
