"""What is measured of a real model: counted on answers that are known."""

import contextlib
import json
import math

import pytest
import torch
from kit import bytelevel_tokenizer, tiny_model

from posttrain.data import questions
from posttrain.evaluation import lessons
from posttrain.rollouts.sampling import Rollout

ROWS = [{"question": f"What is {n} + 1?", "problem": {"answer": str(n + 1)}} for n in range(10)]
RIGHT_WORD = {question: words[0] for question, words in questions.CLOSED}


def exam() -> lessons.Exam:
    return lessons.Exam("reasoning-gym:chain_sum", {}, 10, "Nova", "SmolLM", contextlib.nullcontext)


@pytest.fixture
def says(monkeypatch):
    """Stands for ask: what `says.answer` makes of each prompt, of which the length in tokens is that of its text."""

    def ask(model, tokenizer, prompt_ids, *, max_new_tokens, temperature=0.0, label=None):
        told = [ask.answer(tokenizer.decode(ids), temperature) for ids in prompt_ids]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in told]
        return Rollout(prompt_ids, ids, [torch.zeros(len(i)) for i in ids], [ended for _, ended in told])

    monkeypatch.setattr(lessons, "ask", ask)
    monkeypatch.setattr(lessons.procedural, "rows", lambda name, split, task: ROWS if split == "test" else [])
    monkeypatch.setattr(lessons.procedural, "verify", lambda problem, answer: float(answer == problem["answer"]))
    monkeypatch.setattr(lessons.Exam, "_perplexity", lambda *_: lessons.Perplexity(2.0, 1.5, 2.5, 40))
    return ask


def test_every_share_counts_what_it_says(says):
    def answer(prompt, temperature):
        for n in range(10):
            if (
                f"What is {n} + 1?" in prompt
            ):  # greedy: all right but two; sampled: five right, of which one never ended
                wrong = n < 2 if temperature == 0 else n >= 5
                return (
                    f"{n} + 1 = {n + 1}.\n#### {0 if wrong else n + 1}" if n % 2 else f"#### {0 if wrong else n + 1}",
                    n != 3,
                )
        if (question := next((q for q in RIGHT_WORD if q in prompt), None)) is not None:
            return (RIGHT_WORD[question] if "capital" in question else "I do not know"), True
        if any(question in prompt for question in questions.ORDINARY_TEST):
            return ("I, Nova, say so." if "dinner" in prompt else "Soup."), True
        return ("I am Nova, once SmolLM." if "name" in prompt else "I am Nova."), True

    says.answer = answer
    lesson = exam().take("sft", None, bytelevel_tokenizer(), [], seconds=60.0)
    # greedily n = 2 … 9 are right, 3 did not end: 7; sampled 0 … 4, without 3: 4; odd n show the step: 5
    assert (lesson.greedy.hits, lesson.sampled.hits, lesson.worked.hits, lesson.finished.hits) == (7, 4, 5, 9)
    assert all(p.n == 10 for p in (lesson.greedy, lesson.sampled, lesson.worked, lesson.finished))
    named = sum("name" in question for question in questions.IDENTITY_TEST)
    assert (lesson.new_name.hits, lesson.old_name.hits, lesson.new_name.n) == (110, named, 110) and 0 < named < 110
    capitals = sum("capital" in question for question in RIGHT_WORD)
    assert (lesson.closed.hits, lesson.closed.n) == (capitals, 40) and (lesson.unasked.hits, lesson.unasked.n) == (
        1,
        40,
    )
    assert len(lesson.answers) == len(exam().probes()) == 10 and lesson.answers[1] == "1 + 1 = 2. ⏎ #### 0"
    assert lessons.from_json(json.loads(json.dumps(lesson.as_json()))) == lesson


def test_perplexity_is_one_sum_over_all_tokens():
    """[4] and [1, 1, 1]: 7 nats over 4 tokens, exp(1.75); the mean of the batch means would be exp(2.5) = 12.18."""
    found = lessons.perplexity([4.0, 3.0], [1, 3])
    assert found.value == pytest.approx(5.754603, abs=1e-5) and found.answers == 2
    # of two answers drawn with replacement: both the first (e⁴), both the second (e¹), or one of each
    assert (found.low, found.high) == (pytest.approx(math.e, abs=1e-4), pytest.approx(math.exp(4), abs=1e-3))
    alike = lessons.perplexity([2.0] * 9, [2] * 9)
    assert (alike.low, alike.value, alike.high) == pytest.approx((math.e,) * 3, abs=1e-5)


def test_perplexity_of_fixed_answers():
    """Against logits and a softmax, answer by answer."""
    model, tokenizer = tiny_model(vocab_size=300).eval(), bytelevel_tokenizer()
    ordinary = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14])]
    with torch.no_grad():
        nll = 0.0
        for prompt, answer in ordinary:
            logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            nll -= sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
    assert exam()._perplexity(model, tokenizer, ordinary).value == pytest.approx(math.exp(nll / 6), rel=1e-4)


def test_what_it_says_before_the_first_lesson(says):
    says.answer = lambda prompt, temperature: (f"At {temperature}.", True)
    tokenizer = bytelevel_tokenizer()
    kept = exam().ordinary(None, tokenizer)
    assert len(kept) == 40 and tokenizer.decode(kept[0][1]) == "At 0.7."
    assert "What can I cook for dinner?" in tokenizer.decode(kept[0][0])
