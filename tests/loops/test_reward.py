"""The reward loop: scores by length, the same in the plain library, learned from pairs and from right and wrong."""

import math
from functools import partial

import pytest
import torch
from kit import CHATML, FAMILIES, bytelevel_tokenizer, run_loop, small_config, tiny_family, tiny_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from loops import reward
from posttrain import ROOT
from posttrain.config import load
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.models import scalar
from posttrain.tokens import template
from posttrain.tokens.batch import collate
from posttrain.tokens.examples import pairs

ROWS = [
    {
        "prompt": f"Question {i}?",
        "chosen": f"Yes, {i}." + " Sure." * (i % 3),
        "rejected": f"No, {i}." + " Never." * (i % 2),
    }
    for i in range(1, 6)
]
LABELS = [
    {"prompt": f"Question {i}?", "completion": f"{'Yes' if i % 2 else 'No'}, {i}.", "label": bool(i % 2)}
    for i in range(1, 8)
]
LN2 = 0.693147
config, run = partial(small_config, "reward"), partial(run_loop, reward, rows=ROWS)


def batch_of(tokenizer, rows=ROWS):
    data = load(ROOT / "configs/reward_tiny.yaml").data
    items = pairs(load_rows(data, "reward", rows), tokenizer, 200, data).items
    return [e for p in items for e in (p.chosen, p.rejected)]


HOW = {
    "none": {},
    "lora": {"model__adapter": "lora"},
    "4bit": {"model__adapter": "lora", "model__quantization": "4bit"},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_and_the_plain_librarys_own_forward(tmp_path, kind, how):
    """Trained for three steps from ln 2; the saved folder's own forward gives the loop's scores on padded rows."""
    wide = {} if how != "4bit" else {"gpt2": {"n_embd": 64}, "opt": {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}}.get(
        kind, {"hidden_size": 64, "intermediate_size": 128}
    )  # fmt: skip
    name = tiny_family(tmp_path / "m", kind, **wide)
    result = run(name, tmp_path, training__epochs=2, **HOW[how])
    assert result.metrics[0]["loss"] == pytest.approx(LN2, abs=1e-4) and result.metrics[-1]["loss"] != pytest.approx(
        LN2, abs=1e-4
    )
    saved, tokenizer = result.folder / "model", AutoTokenizer.from_pretrained(result.folder / "model")
    examples = batch_of(tokenizer)
    ours = torch.tensor(
        scalar.score_examples(scalar.CompletionScores(result.model.eval()), examples, tokenizer.pad_token_id, 3)
    )
    assert ours.abs().max() > 1e-3
    again = scalar.score_examples(
        scalar.load_reward_model(str(saved), device="cpu", key="k")[0], examples, tokenizer.pad_token_id, 4
    )
    torch.testing.assert_close(torch.tensor(again), ours, atol=1e-5, rtol=1e-4)
    if how == "none":
        plain = AutoModelForSequenceClassification.from_pretrained(saved)
    elif how == "lora":
        from peft import AutoPeftModelForSequenceClassification

        plain = AutoPeftModelForSequenceClassification.from_pretrained(
            saved, num_labels=1, pad_token_id=tokenizer.pad_token_id
        )
    else:
        return
    batch = collate(examples, tokenizer.pad_token_id)
    with torch.no_grad():
        theirs = plain.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_where_pad_is_eos_another_special_token_is_saved_as_pad(tmp_path):
    tokenizer = bytelevel_tokenizer(CHATML, pad="<|im_end|>")
    result = run(tiny_folder(tmp_path / "m", tokenizer=tokenizer), tmp_path)
    saved = AutoTokenizer.from_pretrained(result.folder / "model")
    assert saved.pad_token_id not in template.stop_ids(saved)
    plain = AutoModelForSequenceClassification.from_pretrained(result.folder / "model")
    assert plain.config.pad_token_id == saved.pad_token_id


@pytest.mark.parametrize("loss", ["preference", "outcome"])
def test_step_equivalence(tmp_path, llama, loss):
    """One batch of 4, two of 2, four of 1: the same loss and gradient norm; 5 (7) rows: a short last window."""
    data = {"preference": ROWS, "outcome": LABELS}[loss]
    more = {"reward__loss": loss, "reward__center_coef": 0.0 if loss == "outcome" else 0.01}
    runs = [run(llama, tmp_path, rows=data, training__micro_batch_size=m, **more) for m in (4, 2, 1)]
    assert len(runs[0].metrics) == 2
    for other in runs[1:]:
        for name in ("loss", "grad_norm", "accuracy"):
            assert [m[name] for m in other.metrics] == pytest.approx([m[name] for m in runs[0].metrics], abs=1e-5)


def test_what_can_be_told_apart_is_learned(tmp_path, llama):
    more = {"training__epochs": 20, "training__learning_rate": 3e-3}
    assert run(llama, tmp_path, **more).metrics[-1]["accuracy"] == 1.0
    orm = run(llama, tmp_path, rows=LABELS, reward__loss="outcome", reward__center_coef=0.0, **more)
    assert orm.metrics[0]["loss"] == pytest.approx(LN2, abs=1e-4) and orm.metrics[-1]["accuracy"] == 1.0


def test_margin_and_centring(tmp_path, llama):
    first = run(llama, tmp_path, reward__margin=1.0).metrics[0]
    assert first["loss"] == pytest.approx(math.log(1 + math.e), abs=1e-4)  # −log σ(−1) = 1.313262
    both = [
        run(llama, tmp_path, reward__center_coef=c, training__epochs=10, training__learning_rate=3e-3).metrics[-1]
        for c in (0.0, 1.0)
    ]
    middle = [abs(m["rewards_chosen"] + m["rewards_rejected"]) for m in both]
    assert middle[1] < 0.5 * middle[0] or middle[1] < 0.05


@pytest.mark.draws
def test_validation_has_its_interval_and_samples_their_scores(tmp_path, llama, capfd):
    result = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1, output__samples=2)
    assert 0 <= result.metrics[-1]["validation_accuracy"] <= 1
    assert "held-out accuracy" in (err := capfd.readouterr().err) and "n=2" in err
    samples = (result.folder / "samples.md").read_text()
    assert samples.count("before: `+0.00, +0.00`") == 2 and "chosen: " in samples
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000


def test_preflight_refuses_a_head_that_does_not_start_at_0(tmp_path, llama, monkeypatch):
    real = scalar.as_scorer

    def warm(causal):
        made = real(causal)
        torch.nn.init.normal_(made.score.weight)
        return made

    monkeypatch.setattr(scalar, "as_scorer", warm)
    with pytest.raises(UserError, match=r"preflight: the loss of the first step is .* not ln 2 = 0.693147"):
        run(llama, tmp_path)


def test_refusals(tmp_path, llama):
    with pytest.raises(UserError, match=r"belong to loss: preference"):
        config(llama, tmp_path, reward__loss="outcome", reward__margin=1.0)
    with pytest.raises(UserError, match="rows, row 2: 'label' must be true or false"):
        run(llama, tmp_path, rows=[LABELS[0], LABELS[1] | {"label": 3}], reward__loss="outcome", reward__center_coef=0)
    with pytest.raises(UserError, match=r"expected the columns prompt \+ completion \+ label or messages \+ label"):
        run(llama, tmp_path, reward__loss="outcome", reward__center_coef=0)
    with pytest.raises(UserError, match=r"cannot be loaded as a reward model: no model there"):
        scalar.load_reward_model(str(tmp_path), device="cpu", key="ppo.reward_model")
