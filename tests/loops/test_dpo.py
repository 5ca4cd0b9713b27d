import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from kit import metric, run_loop, small_config, tiny_folder

from loops import dpo, sft
from losses.logprobs import sequence_logps, token_logps
from posttrain import ROOT, models
from posttrain.config import load
from posttrain.data.rows import load_rows
from posttrain.errors import UserError
from posttrain.tokens.examples import pairs

ROWS = [
    {
        "prompt": f"Question {i}?",
        "chosen": f"Yes, {i}." + " Sure." * (i % 3),
        "rejected": f"No, {i}." + " Never." * (i % 2),
    }
    for i in range(1, 6)
]
LN2 = 0.693147
config, run = partial(small_config, "dpo"), partial(run_loop, dpo, rows=ROWS)


MODES = {
    "copy": {},
    "adapter off": {"model__adapter": "lora"},
    "copy beside an adapter": {"model__adapter": "lora", "model__reference": "copy"},
    "precomputed": {"dpo__precompute": True},
    "precomputed, adapter": {"dpo__precompute": True, "model__adapter": "lora"},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_first_step_is_ln_2_and_then_the_margin_grows(tmp_path, llama, mode):
    result = run(llama, tmp_path, training__epochs=4, training__learning_rate=5e-3, **MODES[mode])
    assert metric(result, "dpo_loss")[0] == pytest.approx(LN2, abs=1e-5)
    assert metric(result, "margin")[0] == pytest.approx(0, abs=1e-5) and metric(result, "margin")[-1] > 0.2


def test_every_reference_mode_gives_the_same_run(tmp_path, llama):
    runs = [run(llama, tmp_path, **MODES[m]) for m in ("copy", "precomputed")]
    assert metric(runs[0], "loss") == pytest.approx(metric(runs[1], "loss"), abs=1e-6)
    runs = [run(llama, tmp_path, **MODES[m]) for m in ("adapter off", "copy beside an adapter", "precomputed, adapter")]
    for other in runs[1:]:
        assert metric(other, "loss") == pytest.approx(metric(runs[0], "loss"), abs=1e-6)


def test_dropout_in_the_models_config_does_not_move_the_first_step(tmp_path):
    """GPT-2 and OPT whose configs say dropout 0.1."""
    for kind in ("gpt2", "opt"):
        result = run(tiny_folder(tmp_path / kind, kind), tmp_path)
        assert metric(result, "dpo_loss")[0] == pytest.approx(LN2, abs=1e-5)
    assert models.load(str(tmp_path / "run" / "model"))[0].config.dropout == 0.1  # the saved config keeps its own


def test_preflight_refuses_a_reference_that_is_not_the_starting_policy(tmp_path, llama, monkeypatch):
    real = dpo.frozen_reference

    def moved(policy, config, compute):
        reference = real(policy, config, compute)
        for p in reference.parameters():
            p.add_(0.01 * torch.randn_like(p))
        return reference

    monkeypatch.setattr(dpo, "frozen_reference", torch.no_grad()(moved))
    with pytest.raises(
        UserError, match=r"preflight: policy and reference differ by .* nats on an answer of \d+ tokens"
    ):
        run(llama, tmp_path)


@pytest.fixture(scope="module")
def sft_adapter(tmp_path_factory, llama):
    path = tmp_path_factory.mktemp("sft")
    c = load(
        ROOT / "configs/sft_tiny.yaml",
        {
            "model.name": llama,
            "model.adapter": "lora",
            "training.learning_rate": 5e-3,
            "training.epochs": 4,
            "output.dir": str(path / "run"),
            "output.samples": 0,
        },
    )
    return sft.train(c, rows=[{"prompt": "Question 1?", "completion": "Maybe."}] * 4)


@pytest.mark.parametrize("mode", MODES)
def test_after_an_sft_adapter_the_reference_is_the_sft_model(tmp_path, sft_adapter, llama, mode, monkeypatch):
    """Not the base. Its log-probs equal the SFT model's in every mode, and it does not move in 10 steps."""
    captured = {}
    real = dpo.frozen_reference

    def spy(policy, config, compute):
        captured["reference"], captured["policy"] = real(policy, config, compute), policy
        return captured["reference"]

    monkeypatch.setattr(dpo, "frozen_reference", spy)
    name = str(sft_adapter.folder / "model")
    result = run(name, tmp_path, training__max_steps=10, training__learning_rate=5e-3, **MODES[mode])
    assert metric(result, "dpo_loss")[0] == pytest.approx(LN2, abs=1e-5)

    tokenizer = result.tokenizer
    items = pairs(
        load_rows(load(ROOT / "configs/dpo_tiny.yaml").data, "dpo", ROWS),
        tokenizer,
        200,
        load(ROOT / "configs/dpo_tiny.yaml").data,
    ).items
    from posttrain.tokens.batch import collate

    batch = collate([p.chosen for p in items], tokenizer.pad_token_id)
    with torch.no_grad():
        got = sequence_logps(captured["reference"](batch)[0], batch.active)  # after 10 steps
        theirs = sequence_logps(
            token_logps(sft_adapter.model.eval()(batch.input_ids).logits, batch.input_ids), batch.active
        )
        base = sequence_logps(token_logps(models.load(llama)[0](batch.input_ids).logits, batch.input_ids), batch.active)
        now = sequence_logps(captured["policy"](batch)[0], batch.active)
    torch.testing.assert_close(got, theirs, atol=1e-4, rtol=1e-6)
    assert (theirs - base).abs().min() > 1e-2 and (now - theirs).abs().max() > 1e-2


def test_a_frozen_copy_is_bit_identical_after_ten_steps(tmp_path, llama, monkeypatch):
    kept = {}
    real = dpo.frozen_reference

    def spy(policy, config, compute):
        kept["reference"] = real(policy, config, compute)
        kept["before"] = copy.deepcopy(kept["reference"].state_dict())
        return kept["reference"]

    monkeypatch.setattr(dpo, "frozen_reference", spy)
    run(llama, tmp_path, training__max_steps=10)
    assert all(torch.equal(v, kept["before"][k]) for k, v in kept["reference"].state_dict().items())


def test_lora_trains_the_adapter_only_and_reloads_in_a_fresh_process(tmp_path, llama):
    """Every trainable tensor moves, every frozen one is bit-identical; the saved adapter gives the same logits."""
    base = dict(models.load(llama)[0].named_parameters())
    result = run(llama, tmp_path, model__adapter="lora", training__max_steps=3, training__learning_rate=1e-2)
    for name, p in result.model.named_parameters():
        if "lora_" in name:
            assert p.requires_grad and p.abs().sum() > 0
        else:
            assert torch.equal(p, base[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    ids = torch.arange(20, 40)[None]
    torch.save(result.model.eval()(ids).logits, tmp_path / "logits.pt")
    code = (
        "import torch\nfrom peft import AutoPeftModelForCausalLM\nfrom safetensors.torch import load_file\n"
        f"keys = load_file('{result.folder}/model/adapter_model.safetensors').keys()\n"
        "assert keys and not any('module.' in k.replace('base_model.', '') or '_orig_mod' in k for k in keys), keys\n"
        f"model = AutoPeftModelForCausalLM.from_pretrained('{result.folder}/model').eval()\n"
        f"logits = model(torch.arange(20, 40)[None]).logits\n"
        f"torch.testing.assert_close(logits, torch.load('{tmp_path}/logits.pt'), atol=1e-6, rtol=0)\n"
        f"merged = model.merge_and_unload()(torch.arange(20, 40)[None]).logits\n"
        "torch.testing.assert_close(merged, logits, atol=1e-5, rtol=0)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    ours = models.load(str(result.folder / "model"))[0].eval()  # our own door merges it
    torch.testing.assert_close(ours(ids).logits, torch.load(tmp_path / "logits.pt"), atol=1e-5, rtol=0)


def test_an_adapter_on_an_adapter_is_saved_with_its_start(tmp_path, sft_adapter):
    from peft import AutoPeftModelForCausalLM

    result = run(str(sft_adapter.folder / "model"), tmp_path, model__adapter="lora", training__max_steps=2)
    saved = AutoPeftModelForCausalLM.from_pretrained(result.folder / "model").eval()
    ids = torch.arange(20, 40)[None]
    torch.testing.assert_close(saved(ids).logits, result.model.eval()(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sft_weight", [0.0, 1.0])
def test_step_equivalence(tmp_path, llama, sft_weight):
    runs = [run(llama, tmp_path, training__micro_batch_size=m, dpo__sft_weight=sft_weight) for m in (4, 2, 1)]
    for other in runs[1:]:
        for name in ("loss", "grad_norm", "chosen_logps_per_token"):
            assert metric(other, name)[0] == pytest.approx(metric(runs[0], name)[0], abs=2e-6)


def test_the_nll_term_is_the_token_mean_over_the_chosen_completions(tmp_path, llama):
    result = run(llama, tmp_path, dpo__sft_weight=0.5)
    first = result.metrics[0]
    assert first["loss"] == pytest.approx(LN2 - 0.5 * first["chosen_logps_per_token"], abs=1e-5)


def test_another_model_as_the_reference(tmp_path, llama):
    other = tiny_folder(tmp_path / "other", seed=5)
    result = run(llama, tmp_path, model__reference=other)
    assert metric(result, "dpo_loss")[0] != pytest.approx(LN2, abs=1e-3)


# the value of each loss where nothing has moved, and the keys that it wants
OTHERS = {
    "ipo": (25.0, {}),  # (1 / (2 · 0.1))²
    "robust": (LN2, {"dpo__label_smoothing": 0.1}),
    "dpop": (LN2, {}),
    "apo_zero": (1.0, {}),
    "apo_down": (1.0, {}),
}


@pytest.mark.parametrize("loss", OTHERS)
def test_the_other_losses_start_at_their_own_value_and_then_the_margin_grows(tmp_path, llama, loss):
    value, more = OTHERS[loss]
    more = {"dpo__loss": loss, "training__epochs": 4, "training__schedule": "constant", **more}
    result = run(llama, tmp_path, **more)
    assert metric(result, "dpo_loss")[0] == pytest.approx(value, abs=1e-3)
    assert metric(result, "margin")[0] == pytest.approx(0, abs=1e-5) and metric(result, "margin")[-1] > 0.05
    other = run(llama, tmp_path, **more, training__micro_batch_size=1, dpo__precompute=True, training__max_steps=3)
    assert metric(other, "loss") == pytest.approx(metric(result, "loss")[:3], rel=1e-4, abs=1e-5)


def test_ipo_with_means_per_token(tmp_path, llama):
    """The same pairs: h is divided by each answer's own length, so the target of 5 is reached later, if ever."""
    more = {"dpo__loss": "ipo", "training__epochs": 3}
    sums, means = (run(llama, tmp_path, **more, dpo__length_normalize=how) for how in (False, True))
    assert metric(means, "loss")[0] == pytest.approx(25.0, abs=1e-3)
    assert 0 < metric(means, "margin")[-1] < 0.5 * metric(sums, "margin")[-1]
    held = run(llama, tmp_path, **more, dpo__length_normalize=True, data__validation_split=0.4, training__eval_every=3)
    assert 14 < held.metrics[-1]["validation_loss"] < 25  # of means, as in training; (h − 5)² with a small h


def test_preflight_refuses_a_loss_whose_pairs_are_not_counted_right(tmp_path, llama, monkeypatch):
    real = dpo.preference_loss

    def twice(*told, **keys):
        loss = real(*told, **keys)
        return lambda *sides, weights=None: loss(*sides, weights=None if weights is None else 2 * weights)

    monkeypatch.setattr(dpo, "preference_loss", twice)
    with pytest.raises(UserError, match=r"loss of the first step is 50\.0000\d\d, not 25\.000000, .*counted twice"):
        run(llama, tmp_path, dpo__loss="ipo")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dpo__penalty": 5}, "dpo.penalty belongs to dpo.loss: dpop; sigmoid does not read it"),
        (
            {"dpo__loss": "ipo", "dpo__label_smoothing": 0.1},
            "dpo.label_smoothing belongs to dpo.loss: sigmoid or robust",
        ),
        (
            {"dpo__loss": "dpop", "dpo__length_normalize": True},
            "dpo.length_normalize belongs to dpo.loss: ipo; dpop does",
        ),
        ({"dpo__loss": "robust"}, "dpo.loss: robust needs dpo.label_smoothing"),
        ({"dpo__loss": "hinge"}, "dpo.loss: input should be 'sigmoid', 'ipo'"),
    ],
)
def test_keys_that_the_chosen_loss_does_not_read_are_refused(tmp_path, more, message):
    with pytest.raises(UserError) as told:
        config("x", tmp_path, **more)
    assert message in str(told.value)


@pytest.mark.draws
def test_validation(tmp_path, llama):
    result = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1)
    assert 0 <= metric(result, "validation_accuracy")[-1] <= 1 and metric(result, "validation_loss")[-1] > 0
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000


def test_bf16(tmp_path, llama):
    for more in ({}, {"model__adapter": "lora"}):
        result = run(llama, tmp_path, model__dtype="bfloat16", output__samples=2, **more)
        assert metric(result, "dpo_loss")[0] == pytest.approx(LN2, abs=1e-5)  # not merely within bf16's rounding


def test_a_run_does_not_overwrite_the_model_it_starts_from(tmp_path, llama):
    first = run(llama, tmp_path, training__max_steps=1)
    with pytest.raises(UserError, match="lies in the run folder"):
        run(str(first.folder / "model"), tmp_path, training__max_steps=1)
    with pytest.raises(UserError, match="cannot be loaded"):
        run("no/such-model", tmp_path)
    assert (first.folder / "model" / "config.json").exists()  # a failed start has not cost the older run


def test_a_short_context_is_not_overrun_by_the_samples(tmp_path):
    name = tiny_folder(tmp_path / "gpt2", "gpt2", n_positions=64)
    rows = [*ROWS, {"prompt": "long " * 200, "chosen": "a", "rejected": "b"}]
    result = run(name, tmp_path, rows=rows, output__samples=6, training__max_steps=1)
    assert (result.folder / "samples.md").read_text().count("before:") == 5  # the row that does not fit is not shown


def test_a_stream_of_pairs(tmp_path, llama):
    stream = {
        "data__name": str(ROOT / "tests/data/hh.jsonl"),
        "data__streaming": True,
        "training__max_steps": 4,
        "training__epochs": 1,
    }
    result = run(llama, tmp_path, rows=None, **stream)
    assert len(result.metrics) == 4 and metric(result, "dpo_loss")[0] == pytest.approx(LN2, abs=1e-5)
    with pytest.raises(UserError, match=r"dpo.precompute goes through all rows beforehand"):
        config(llama, tmp_path, dpo__precompute=True, **stream)
