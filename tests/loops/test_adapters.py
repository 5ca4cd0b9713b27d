"""A policy that starts from a saved adapter: it is trained on, and the reference is the policy as it was at step 0."""

import copy
import json

import pytest
import torch
from kit import run_loop, tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from loops import dpo, grpo, sft
from losses.logprobs import sequence_logps, token_logps
from posttrain import ROOT
from posttrain.config import load
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.merge import merge
from posttrain.models import lora
from posttrain.tokens import template
from posttrain.tokens.batch import collate
from posttrain.tokens.examples import pairs

LN2 = 0.693147
ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"Yes, {i}." + " Sure." * (i % 3), "rejected": f"No, {i}."}
    for i in range(1, 6)
]
DATA = load(ROOT / "configs/dpo_tiny.yaml").data


@pytest.fixture(scope="module", params=["none", "4bit"])
def start(request, tmp_path_factory):
    """(quantization, base folder, what SFT with LoRA made of it)"""
    path, bits = tmp_path_factory.mktemp("start"), request.param
    base = tiny_folder(path / "base", hidden_size=64, intermediate_size=128)
    lora = {"model__adapter": "lora", "model__quantization": bits, "model__lora__rank": 4}
    rows = [{"prompt": "Question 1?", "completion": "Maybe."}] * 8
    steps = {"training__batch_size": 8, "training__epochs": 4, "training__learning_rate": 1e-2}
    return bits, base, run_loop(sft, base, path, rows=rows, **lora, **steps)


def changes_of(start, **more):
    """A run that goes on with the adapter of `start`, and what else it changes."""
    bits, _, result = start
    adapter = {
        "model__adapter": "lora",
        "model__adapter_path": str(result.folder / "model"),
        "model__quantization": bits,
    }
    return adapter | {"training__learning_rate": 1e-2, "training__max_steps": 10} | more


def run(loop, start, tmp_path, *, rows=ROWS, reward=None, **changes):
    return run_loop(loop, start[1], tmp_path, rows=rows, reward=reward, **changes_of(start, **changes))


MODES = {"auto": {}, "copy": {"model__reference": "copy"}, "precomputed": {"dpo__precompute": True}}


@pytest.mark.parametrize("mode", MODES)
def test_dpo_from_an_adapter_starts_at_ln_2_of_the_sft_model(tmp_path, start, mode, monkeypatch):
    kept, real = {}, dpo.frozen_reference

    def spy(policy, model_config, compute):
        kept["reference"], kept["policy"] = real(policy, model_config, compute), policy
        kept["start"] = copy.deepcopy(kept["reference"].start)
        return kept["reference"]

    monkeypatch.setattr(dpo, "frozen_reference", spy)
    result = run(dpo, start, tmp_path, **MODES[mode])
    assert result.metrics[0]["dpo_loss"] == pytest.approx(LN2, abs=1e-5)
    assert result.metrics[-1]["dpo_loss"] < LN2 - 0.05

    # the reference after 10 steps: its weights bit-identical, its log-probs those of the SFT model, not of the base
    assert all(torch.equal(w, kept["start"][n]) for n, w in kept["reference"].start.items()) and kept["start"]
    items = pairs(load_rows(DATA, "dpo", ROWS), result.tokenizer, 200, DATA).items
    batch = collate([p.chosen for p in items], result.tokenizer.pad_token_id)
    with torch.no_grad():
        got = sequence_logps(kept["reference"](batch)[0], batch.active)
        now = sequence_logps(kept["policy"](batch)[0], batch.active)
        sft_model = start[2].model.eval()
        theirs = sequence_logps(token_logps(sft_model(batch.input_ids).logits, batch.input_ids), batch.active)
        with sft_model.disable_adapter():
            base = sequence_logps(token_logps(sft_model(batch.input_ids).logits, batch.input_ids), batch.active)
    torch.testing.assert_close(got, theirs, atol=1e-4, rtol=1e-6)
    assert (theirs - base).abs().min() > 1e-2 and (now - theirs).abs().max() > 1e-2
    assert json.loads((result.folder / "model" / "adapter_config.json").read_text())["r"] == 4  # the SFT run's


def test_sft_then_dpo_then_merge_answers_like_the_adapter_model(tmp_path, start):
    bits, base, _ = start
    result = run(dpo, start, tmp_path)
    merge(str(result.folder / "model"), str(tmp_path / "merged"))
    merged, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
        AutoTokenizer.from_pretrained(tmp_path / "merged"),
    )
    asked = torch.tensor([template.prompt_ids(tokenizer, [{"role": "user", "content": "Question 3?"}])])
    ours = result.model.eval()
    torch.testing.assert_close(merged(asked).logits, ours(input_ids=asked).logits, atol=1e-4, rtol=0)
    answers = [m.generate(input_ids=asked, max_new_tokens=12, do_sample=False) for m in (merged, ours)]
    assert torch.equal(*answers)
    assert lora.base_of(result.folder / "model") == lora.Base(base, bits, torch.float32)


def test_grpo_from_an_adapter_keeps_it_as_the_reference(tmp_path, start):
    result = run(
        grpo, start, tmp_path, rows=[{"prompt": f"Question {i}?"} for i in range(4)],
        reward=lambda completions: [float(len(c)) for c in completions],
        training__max_steps=2, grpo__group_size=8, grpo__max_new_tokens=6,
    )  # fmt: skip
    kl = [m["kl"] for m in result.metrics]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-5


def test_what_a_continued_adapter_says(tmp_path, start, capfd):
    if start[0] != "none":
        pytest.skip("once is enough")
    run(dpo, start, tmp_path, training__max_steps=1)
    assert (
        "going on with the adapter" in (err := capfd.readouterr().err)
        and "rank 4, alpha 16" not in err
        and "warning" not in err
    )
    other = tiny_folder(tmp_path / "other", hidden_size=64, intermediate_size=128)
    run(dpo, start, tmp_path, training__max_steps=1, model__name=other, model__quantization="4bit")
    err = capfd.readouterr().err
    assert "trained on a base with quantization none, this one has 4bit" in err and "not on" in err
    with pytest.raises(UserError, match=r"model.adapter_path 'nowhere': cannot be loaded onto"):
        run(dpo, start, tmp_path, model__adapter_path="nowhere")
