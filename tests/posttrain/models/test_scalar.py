"""Scalar heads: scores by length, values before their tokens, and what a saved reward model needs."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from kit import CHATML, bytelevel_tokenizer, whole_models
from safetensors.torch import load_file, save_file

from posttrain import models
from posttrain.config.keys import Lora, Model
from posttrain.errors import UserError
from posttrain.models import lora, scalar
from posttrain.models.scalar import ActorCritic
from posttrain.tokens.batch import Batch, Example, collate


def test_a_score_does_not_depend_on_padding_nor_on_pad_equal_to_eos(llama):
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
    causal = models.load(llama)[0]

    def none(config):
        raise ValueError("Unrecognized configuration class")

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


def drawn(llama):
    """A scorer whose head is drawn at random."""
    causal, tokenizer, _ = models.load(llama)
    made = scalar.as_scorer(causal)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(0))
    return made.eval(), tokenizer


def test_a_head_of_zeros_on_the_models_own_backbone(llama):
    causal = models.load(llama)[0]
    made = scalar.as_scorer(causal)
    assert made.base_model is causal.base_model and made.config.num_labels == 1 and causal.config.num_labels != 1
    assert made.score.weight.shape == (1, 32) and made.score.weight.count_nonzero() == 0 and made.score.bias is None
    scores = scalar.CompletionScores(made)(collate([Example.of([20], [30]), Example.of([21], [31, 32])], 0))
    assert scores.tolist() == [0.0, 0.0]


def test_many_rows_are_scored_in_their_own_order(llama):
    made, tokenizer = drawn(llama)
    scores = scalar.CompletionScores(made)
    rows = [Example.of([20] * n, [30 + n]) for n in (2, 7, 1, 4, 3)]
    alone = [scores(collate([row], 0)).item() for row in rows]
    together = scalar.score_examples(scores, rows, tokenizer.pad_token_id, 2)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    assert len({round(score, 4) for score in alone}) == 5


def test_under_autocast_a_score_keeps_its_digits(llama):
    scores = scalar.CompletionScores(drawn(llama)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert scores(collate([Example.of([20], [30])], 0)).dtype == torch.float32


def test_what_is_saved_scores_the_same_and_is_frozen(tmp_path, llama):
    made, tokenizer = drawn(llama)
    row = Example.of([20, 21], [30, 31])
    expected = scalar.CompletionScores(made)(collate([row], 0)).item()
    scalar.save_scorer(made, tokenizer, tmp_path)
    loaded, its = scalar.load_reward_model(str(tmp_path), device="cpu", key="k")
    assert loaded(collate([row], 0)).item() == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-3
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.model.training
    assert its.get_vocab() == tokenizer.get_vocab()
    its.pad_token = None
    its.save_pretrained(tmp_path)
    assert scalar.load_reward_model(str(tmp_path), device="cpu", key="k")[1].pad_token == "<|im_end|>"


def test_an_adapters_scorer_finds_its_base(tmp_path, llama):
    causal, tokenizer, _ = models.load(llama)
    adapted = lora.add(scalar.as_scorer(causal), Lora(rank=4), llama, task_type="SEQ_CLS")
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = collate([Example.of([20, 21], [30, 31])], 0)
    expected = scalar.CompletionScores(adapted.eval())(batch).item()
    scalar.save_scorer(adapted, tokenizer, tmp_path)
    loaded = scalar.load_reward_model(str(tmp_path), device="cpu", key="k")[0]
    assert loaded(batch).item() == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-3


def test_the_scorer_of_a_run(tmp_path, llama):
    run = SimpleNamespace(
        folder=tmp_path, has_start=False, compute=torch.float32, device=torch.device("cpu"), parallel=whole_models()
    )
    scorer, tokenizer, _ = scalar.load_scorer(Model(name=llama, gradient_checkpointing=True), run)
    assert scorer.is_gradient_checkpointing and scorer.score.weight.count_nonzero() == 0 and tokenizer.eos_token
    assert all(p.requires_grad for p in scorer.parameters())
    adapted, _, _ = scalar.load_scorer(Model(name=llama, adapter="lora"), run)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained) and any("score" in name for name in trained)
    assert adapted.peft_config["default"].base_model_name_or_path == llama


def test_an_adapter_on_quantised_weights_says_so(tmp_path, llama):
    causal, tokenizer, _ = models.load(llama, quantization="8bit")
    scalar.save_scorer(
        lora.add(scalar.as_scorer(causal), Lora(rank=4), llama, task_type="SEQ_CLS"), tokenizer, tmp_path
    )
    assert json.loads((tmp_path / lora.NOTE).read_text()) == {"quantization": "8bit", "dtype": "float32"}


def test_a_pad_that_ends_nothing():
    tokenizer = bytelevel_tokenizer(CHATML)
    assert scalar.use_a_pad_that_ends_nothing(tokenizer) == tokenizer.convert_tokens_to_ids("<|pad|>")
    tokenizer = bytelevel_tokenizer(CHATML, pad="<|im_end|>")
    assert scalar.use_a_pad_that_ends_nothing(tokenizer) == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_critic_on_the_policys_own_backbone(llama):
    policy = models.CompletionLogps(models.load(llama)[0].eval())
    both, batch = ActorCritic(policy, None), collate([Example.of([20, 21], [30, 31])], 0)
    logps, entropy, values = both(batch)
    assert values.tolist() == [[0.0] * 4] and both.head.weight.requires_grad  # its head starts at 0
    alone = policy(batch)
    assert torch.equal(logps, alone[0]) and torch.equal(entropy, alone[1])
    torch.nn.init.ones_(both.head.weight)
    hidden = policy.with_hidden(batch)[2]
    torch.testing.assert_close(both(batch)[2], hidden.sum(-1), atol=1e-5, rtol=1e-5)


def test_a_language_model_is_no_reward_model(tmp_path, llama):
    for labels in ({}, {"num_labels": 1, "id2label": {"0": "score"}}):
        there = shutil.copytree(llama, tmp_path / f"m{len(labels)}")
        config = json.loads((there / "config.json").read_text())
        (there / "config.json").write_text(json.dumps(config | labels))
        with pytest.raises(
            UserError, match=r"m\d' is a language model, not a reward model: it has no score.weight. Train a"
        ):
            scalar.load_reward_model(str(there), device="cpu", key="ppo.reward_model")
    causal, tokenizer, _ = models.load(llama)
    lora.add(causal, Lora(), llama).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter' is a language model, not a reward model: it is an adapter of one"):
        scalar.load_reward_model(str(tmp_path / "adapter"), device="cpu", key="ppo.reward_model")
    with pytest.raises(UserError, match=r"^ppo.reward_model '/no/where': cannot be loaded: no such folder$"):
        scalar.load_reward_model("/no/where", device="cpu", key="ppo.reward_model")


def test_a_reward_model_by_the_folder_of_its_run_and_one_that_is_not_whole(tmp_path, llama):
    causal, tokenizer, _ = models.load(llama)
    scalar.save_scorer(scalar.as_scorer(causal), tokenizer, tmp_path / "run/model")
    assert scalar.load_reward_model(str(tmp_path / "run"), device="cpu", key="k")[0].head.out_features == 1
    file = tmp_path / "run/model/model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "up_proj" not in n}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the checkpoint lacks model.layers.0.mlp.up_proj.weight"):
        scalar.load_reward_model(str(tmp_path / "run"), device="cpu", key="k")
