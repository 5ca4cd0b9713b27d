"""Scalar heads: scores by length, values before their tokens, and what a saved reward model needs."""

import pytest
import torch
from kit import CHATML, bytelevel_tokenizer

from posttrain import models
from posttrain.errors import UserError
from posttrain.models import scalar
from posttrain.models.scalar import ActorCritic
from posttrain.tokens.batch import Batch, Example, collate


def test_a_score_does_not_depend_on_padding_nor_on_pad_equal_to_eos(llama):
    from posttrain import models

    causal, tokenizer, _ = models.load(llama)
    made = scalar.as_scorer(causal)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(0))
    scores = scalar.CompletionScores(made.eval())
    end = tokenizer.eos_token_id
    example = Example.of([20, 21, 22], [30, 31, end])
    alone = scores(collate([example], end))
    for pad in (end, 0, 31):
        wide = Example.of([20] * 9, [30] * 4)
        torch.testing.assert_close(scores(collate([example, wide], pad))[:1], alone, atol=1e-5, rtol=0)
        mask = torch.tensor([[False] * 7 + [True] * 6])
        ids = torch.tensor([[pad] * 7 + example.input_ids])
        left = Batch(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), mask)
        torch.testing.assert_close(scores(left), alone, atol=1e-5, rtol=0)


def test_without_another_special_token_it_is_refused(monkeypatch):
    tokenizer = bytelevel_tokenizer(CHATML, pad="<|im_end|>")
    monkeypatch.setattr(scalar.template, "special_ids", lambda tokenizer: {tokenizer.eos_token_id})
    with pytest.raises(UserError, match="would read the score at the wrong place; add a pad token"):
        scalar.use_a_pad_that_ends_nothing(tokenizer)


def test_an_architecture_without_a_classifier_is_a_clear_error(monkeypatch, llama):
    from posttrain import models

    causal = models.load(llama)[0]

    def none(config):
        raise ValueError("Unrecognized configuration class")

    import transformers

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_config", none)
    with pytest.raises(UserError, match=r"no sequence classifier for llama, .* set ppo.critic: shared"):
        scalar.as_scorer(causal)


def test_values_stand_before_their_tokens(llama):
    """values[:, t] has read tokens 0 … t: changing a later token does not change it."""
    causal = models.load(llama)[0]
    critic = scalar.CompletionScores(scalar.as_scorer(models.load(llama)[0]).eval())
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    both = ActorCritic(models.CompletionLogps(causal.eval()), critic)
    a, b = (both(collate([Example.of([20, 21], [30, x])], 0))[2] for x in (31, 32))
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.equal(a[:, 3], b[:, 3]) and a.shape == (1, 4)
    padded = both(collate([Example.of([20, 21], [30, 31]), Example.of([20], [30] * 9)], 0))[2]
    torch.testing.assert_close(padded[:1, :4], a, atol=1e-5, rtol=0)
