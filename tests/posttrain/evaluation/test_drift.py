"""Suite drift: exact KL and the same likeliest token, over a model's own answers."""

import pytest
import torch
from kit import bytelevel_tokenizer, sentencepiece_tokenizer, tiny_model

from posttrain.config.suites import Drift as Options
from posttrain.errors import UserError
from posttrain.evaluation.drift import Drift, distances, mean_kl
from posttrain.evaluation.subjects import Subject
from posttrain.tokens.batch import Example, collate


class Says(torch.nn.Module):
    """The same logits at every place."""

    def __init__(self, probs):
        super().__init__()
        self.logits = torch.tensor(probs).log()

    def forward(self, input_ids, position_ids, use_cache):
        return type("Out", (), {"logits": self.logits.expand(*input_ids.shape, -1)})


def test_distances_are_of_completion_tokens():
    half, quarter = Says([0.6, 0.4]), Says([0.25, 0.75])
    batch = collate([Example.of([0, 1], [1]), Example.of([0], [1, 1, 0])], 0)
    # KL(.6 .4 ‖ .25 .75) = .6 log 2.4 + .4 log .533333 = .525281 − .251443 = .273838, at one token and at three
    assert distances(half, quarter, batch).tolist() == [pytest.approx([0.273838, 0, 1], abs=1e-6), pytest.approx([0.821514, 0, 3], abs=1e-6)]  # fmt: skip
    assert distances(half, half, batch).tolist() == [[0, 1, 1], [0, 3, 3]]
    assert mean_kl(half, quarter, [Example.of([0], [1])] * 65, 0) == pytest.approx(0.273838, abs=1e-6)


def test_the_kl_is_a_mean_over_completion_tokens():
    half, quarter = Says([0.5, 0.5]), Says([0.25, 0.75])
    examples = [Example.of([0, 1], [1]), Example.of([0], [1, 1, 0])]
    # KL(½ ½ ‖ ¼ ¾) = ½ log 2 + ½ log ⅔ = .346574 − .202733 = .143841, at each of the four tokens
    assert mean_kl(half, quarter, examples, 0) == pytest.approx(0.143841, abs=1e-6)
    # the other way round: ¼ log ½ + ¾ log 3/2 = −.173287 + .304099 = .130812
    assert mean_kl(quarter, half, examples * 40, 0) == pytest.approx(0.130812, abs=1e-6)


class Recites(torch.nn.Module):
    """At each place the token that it has for this place, whatever stands there."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = torch.tensor(tokens)

    def forward(self, input_ids, position_ids, use_cache):
        logits = torch.nn.functional.one_hot(self.tokens, 4).float()[: input_ids.shape[1]]
        return type("Out", (), {"logits": logits.expand(len(input_ids), -1, -1)})


def test_a_token_is_predicted_at_the_place_before_it():
    """Prompt 0 1, answer 2 3: predicted at places 1 and 2. The two differ at place 2 (and at 3, which predicts nothing)."""
    batch = collate([Example.of([0, 1], [2, 3])], 0)
    kl, same, tokens = distances(Recites([0, 1, 2, 3]), Recites([0, 1, 3, 2]), batch)[0].tolist()
    # at place 2: softmax(0 0 1 0) against softmax(0 0 0 1): (e − 1) / (e + 3) = .300489
    assert (same, tokens) == (1, 2) and kl == pytest.approx(0.300489, abs=1e-6)


def subject(name, seed=0, tokenizer=None, size=None):
    tokenizer = tokenizer or bytelevel_tokenizer()
    return Subject(name, tiny_model(vocab_size=size or len(tokenizer), seed=seed).eval(), tokenizer)


def test_a_model_is_where_it_is_and_another_is_far():
    suite = Drift(Options(base="base", max_rows=6, samples=2, max_new_tokens=8))
    a, b = subject("a"), subject("b", seed=1)
    same, other = (dict(zip(("kl", "top1"), suite(a, base=base).scores, strict=True)) for base in (a, b))
    assert same["kl"].value == pytest.approx(0, abs=1e-9) and same["top1"].value == 1.0 and same["top1"].low < 1
    assert other["kl"].value > 0.1 and other["top1"].value < 0.9 and other["kl"].n == 6
    a.batch_size = 1
    alone = suite(a, base=b).scores[0]
    assert alone.items == pytest.approx(other["kl"].items, rel=1e-4) and alone.weights == other["kl"].weights


def test_another_vocabulary_is_refused_with_the_reason():
    suite = Drift(Options(base="base", max_rows=2))
    with pytest.raises(
        UserError, match=r"a and b have different vocabularies .* a KL over their next tokens means nothing"
    ):
        suite(subject("a"), base=subject("b", tokenizer=sentencepiece_tokenizer()))
    tokenizer = bytelevel_tokenizer()
    with pytest.raises(UserError, match=rf"a has {len(tokenizer)} logits, b {len(tokenizer) + 5}"):
        suite(subject("a"), base=subject("b", tokenizer=tokenizer, size=len(tokenizer) + 5))
