"""training.share_prompts changes what a run costs, and nothing that it does."""

import pytest
import torch
from kit import even_tokens, run_loop, tiny_folder

from loops import dpo, grpo, reward
from posttrain.errors import UserError

PAIRS = [
    {"prompt": f"Tell me about {what}, {'please, ' * (i % 3)}now", "chosen": f"It is {what}" + "!" * i, "rejected": "No." * (1 + i % 2)}
    for i, what in enumerate(("tea", "rain", "an owl", "iron", "snow", "a sum", "salt", "mud"))
]  # fmt: skip
LABELLED = [{"prompt": "What is tea?", "completion": f"It is {i}", "label": i % 2} for i in range(8)]
ASKED = [{"prompt": f"Question {i}?" + " Hm." * (i % 3), "answer": str(i)} for i in range(1, 8)]
RUNS = {
    "dpo": (dpo, dict(rows=PAIRS)),
    "dpo, precomputed, sft term": (dpo, dict(rows=PAIRS, dpo__precompute=True, dpo__sft_weight=0.3)),
    "dpo, adapter": (dpo, dict(rows=PAIRS, model__adapter="lora")),
    "dpo, one pair at a time": (dpo, dict(rows=PAIRS, training__micro_batch_size=1)),
    "reward": (reward, dict(rows=PAIRS)),
    "reward, outcomes": (reward, dict(rows=LABELLED, reward__loss="outcome", reward__center_coef=0.0)),
    "grpo": (grpo, dict(rows=ASKED, reward=even_tokens)),
    "grpo, minibatches": (grpo, dict(rows=ASKED, reward=even_tokens, grpo__minibatches=2, grpo__inner_epochs=2)),
    "grpo, split groups": (grpo, dict(rows=ASKED, reward=even_tokens, training__micro_batch_size=3)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same(tmp_path, llama, name, capsys):
    loop, options = RUNS[name]
    apart, once = (
        run_loop(loop, llama, tmp_path / str(wish), training__share_prompts=wish, **options) for wish in (False, True)
    )
    assert "prompts read once" in capsys.readouterr().err
    assert len(apart.metrics) == len(once.metrics) > 0
    for a, b in zip(apart.metrics, once.metrics, strict=True):
        # before the first update policy and reference are one: which side of 0 a margin is on, rounding says
        by_chance = {"accuracy"} if a["step"] == 1 else set()
        for key in set(a) - {"seconds", "tokens_per_second", "memory_gib"} - by_chance:
            assert b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-4), (a["step"], key)
    for a, b in zip(apart.model.parameters(), once.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_a_model_that_cannot_is_told_of_or_refused(tmp_path, capsys):
    """BLOOM brings its own attention, with biases that go by the place in the row."""
    from kit import bytelevel_tokenizer
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = bytelevel_tokenizer()
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)).save_pretrained(tmp_path / "bloom")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "bloom")
    run_loop(dpo, str(tmp_path / "bloom"), tmp_path, rows=PAIRS, training__max_steps=1)
    said = capsys.readouterr().err
    assert "prompts are read with every row: BloomForCausalLM does not say the same" in said and "read once" not in said
    with pytest.raises(UserError, match=r"training.share_prompts: BloomForCausalLM .*: set it to false, or auto"):
        run_loop(dpo, str(tmp_path / "bloom"), tmp_path, rows=PAIRS, training__share_prompts=True)


def test_a_reference_that_cannot_reads_the_rows_apart(tmp_path, llama, monkeypatch):
    """The reference may be of another architecture: the two still say what they say."""
    from posttrain.models import sharing

    real, asked = sharing.refusal, []
    options = dict(rows=PAIRS, training__max_steps=2, model__reference=tiny_folder(tmp_path / "other", seed=1))
    expected = run_loop(dpo, llama, tmp_path / "a", training__share_prompts=False, **options).metrics
    monkeypatch.setattr(sharing, "refusal", lambda m: asked.append(m) or ("no" if len(asked) == 2 else real(m)))
    got = run_loop(dpo, llama, tmp_path / "b", training__share_prompts=True, **options).metrics
    assert len(asked) == 2 and asked[0] is not asked[1]
    assert [m["loss"] for m in got] == pytest.approx([m["loss"] for m in expected], abs=1e-5)
