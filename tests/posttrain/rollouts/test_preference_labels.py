"""The judge's letters: pencil values, against a plain forward pass, and what a favour for a place does."""

import collections

import pytest
import torch
from kit import sentencepiece_tokenizer, tiny_folder

from posttrain.rollouts.preference_labels import Judge, labelled, question
from posttrain.rollouts.speaking import Said, Speaker


def rows(n):
    return [{"prompt": [{"role": "user", "content": f"Q{i}?"}]} for i in range(n)]


class TwoAnswers:
    def __init__(self, first, second):
        self.said = [first, second]

    def __call__(self, prompts, *, draw=0, label=None):
        return [Said(text, None) if text else Said("", "are empty") for text in self.said[draw]]


class Letters:
    """A judge whose log P(A) − log P(B) are written down."""

    limit = 100

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def favours_a(self, asked):
        self.asked.append([messages[0]["content"] for messages in asked])
        return self.rounds.pop(0)


def test_labels_with_a_pencil():
    # d1, d2 -> (d1 − d2)/2, (d1 + d2)/2:  2, −1 -> 1.5, 0.5   0.5, 1.5 -> −0.5, 1   1, 1.1 -> −0.05, 1.05 (σ = 0.4875: a tie)
    judge, left_out = Letters([2.0, 0.5, 1.0, None], [-1.0, 1.5, 1.1, 0.0]), collections.Counter()
    speaker = TwoAnswers(["x0", "x1", "x2", "x3", "same", ""], ["y0", "y1", "y2", "y3", "SAME", "y5"])
    found, said = labelled(speaker, judge, rows(6), ["P"] * 6, left_out, 0.05)
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in found] == [("Q0?", "x0", "y0"), ("Q1?", "y1", "x1")]
    # σ(1.5) = 1/(1 + e^−1.5) = 1/1.223130; σ(0.5) = 1/1.606531
    assert [r["preference"] for r in found] == pytest.approx([0.817574, 0.622459], abs=1e-6)
    assert left_out == {
        "are ties": 1,
        "comparisons do not fit into the judge's 100 tokens": 1,
        "answers are twice the same": 1,
        "answers are empty": 1,
    }
    # (0.5 + 1 + 1.05)/3 = 0.85; in the second and third A wins both times
    assert "by +0.85 nats (mean of 3 pairs); in 2 of 3 the other order has the other winner" in said
    assert said.endswith("has the other winner: it hears the place rather than the answers, and its labels are noise")
    first, second = judge.asked
    assert first[0].index("x0") < first[0].index("y0") and second[0].index("y0") < second[0].index("x0")


def test_a_constant_favour_for_a_place_cancels():
    """By itself the judge prefers x by 0.4 nats; with 5 more for whatever stands first, the preference is the same."""
    speaker = TwoAnswers(["x"], ["y"])
    (plain,), calm = labelled(speaker, Letters([0.4], [-0.4]), rows(1), ["P"], collections.Counter(), 0.0)
    (biased,), said = labelled(speaker, Letters([5.4], [4.6]), rows(1), ["P"], collections.Counter(), 0.0)
    assert biased["chosen"] == plain["chosen"] == "x" and biased["preference"] == pytest.approx(plain["preference"])
    assert calm.endswith("the other order has the other winner")
    assert "+5.00 nats" in said and "in 1 of 1" in said


@pytest.mark.parametrize("sentencepiece", [False, True])
def test_the_letters_are_those_of_a_plain_forward_pass(tmp_path, llama, sentencepiece):
    folder = tiny_folder(tmp_path, tokenizer=sentencepiece_tokenizer()) if sentencepiece else llama
    speaker = Speaker(folder, key="--model", max_new_tokens=4)
    judge, tokenizer = Judge(speaker), speaker.tokenizer
    asked = [[{"role": "user", "content": text}] for text in ("A or B?", "What is your name? A or B?", "one")]
    got, lengths = judge.favours_a(asked, batch_size=2), set()
    for messages, difference in zip(asked, got, strict=True):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        sums = []
        for letter in "AB":
            said = [*messages, {"role": "assistant", "content": letter}]
            ids = tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
            end = ids.index(tokenizer.eos_token_id, len(prompt))
            logps = speaker.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logps[i - 1, ids[i]].item() for i in range(len(prompt), end)))
            lengths.add(end - len(prompt))
        assert difference == pytest.approx(sums[0] - sums[1], abs=1e-4)
    # the small SentencePiece vocabulary has ▁A, and writes B as ▁ and B: the ▁ alone would be compared with ▁A
    assert lengths == ({1, 2} if sentencepiece else {1})
    assert len(set(got)) == 3
    long = [{"role": "user", "content": "one two " * 200}]
    assert judge.favours_a([long, asked[0]]) == [None, pytest.approx(got[0], abs=1e-5)]
    assert judge.favours_a([long]) == [None]


def test_the_question():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (message,) = question(prompt, "The answer is {kind}.", "first {a}", "second")
    text = message["content"]
    assert (
        text.index("system: Be brief.\nuser: Why?")
        < text.index("The answer is {kind}.")
        < text.index("Answer A:\nfirst {a}")
        < text.index("Answer B:\nsecond")
    )
