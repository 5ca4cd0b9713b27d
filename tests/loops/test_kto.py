"""KTO: judged answers, no pairs; z0 from the mismatched rows of the whole step."""

from functools import partial

import pytest
import torch
from kit import metric, run_loop, small_config, tiny_folder

from loops import kto
from losses.logprobs import sequence_logps
from posttrain.errors import UserError
from posttrain.tokens.batch import collate

ROWS = [
    {
        "prompt": f"Question {i}?",
        "completion": f"{'Yes' if i % 2 else 'No'}, {i}." + " Sure." * (i % 3),
        "label": bool(i % 2),
    }
    for i in range(1, 6)
]
config, run = partial(small_config, "kto"), partial(run_loop, kto, rows=ROWS)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_first_step_is_a_half_and_then_good_and_bad_part(tmp_path, llama, adapter):
    more = {
        "model__adapter": adapter,
        "training__epochs": 8,
        "training__learning_rate": 5e-3,
        "training__batch_size": 5,
    }
    result = run(llama, tmp_path, **more)
    assert metric(result, "loss")[0] == pytest.approx(0.5, abs=1e-5) and metric(result, "z0")[0] < 1e-4
    last = result.metrics[-1]
    assert last["rewards_chosen"] > last["rewards_rejected"] + 0.05 and last["loss"] < 0.49


def test_it_does_not_depend_on_how_a_step_is_cut(tmp_path, llama):
    """Neither the loss nor z0: with 5 rows, windows of 4 and of 1 (which has no other row)."""
    more = {"training__epochs": 3, "training__schedule": "constant", "training__learning_rate": 5e-3}
    whole, apart = (run(llama, tmp_path, **more, training__micro_batch_size=m) for m in (4, 1))
    assert len(whole.metrics) == 6 and max(metric(whole, "z0")) > 0.01
    for name in ("loss", "z0", "grad_norm", "accuracy"):
        assert metric(apart, name) == pytest.approx(metric(whole, name), rel=1e-3, abs=1e-4), name
    assert [row["z0"] for row in whole.metrics[1::2]] == [0, 0, 0]


def test_weights_of_the_two_kinds(tmp_path, llama):
    """Three good rows of five and two bad ones, each ½ at the start: (3 · 2 · ½ + 2 · 1 · ½) / 5 = 0.8."""
    result = run(llama, tmp_path, training__batch_size=5, kto__desirable_weight=2)
    assert metric(result, "loss")[0] == pytest.approx(0.8, abs=1e-5)


def test_z0_is_the_mean_over_other_rows_answers(tmp_path, llama, monkeypatch):
    """Computed here from the models themselves, after a step that has moved the policy."""
    seen, real = [], kto.baseline

    def spy(policy, reference, window, run, pad_id):
        z0 = real(policy, reference, window, run, pad_id)
        batch = collate([row.mismatched for micro in window for row in micro], pad_id)
        with torch.no_grad():
            gaps = sequence_logps(policy(batch)[0] - reference(batch)[0], batch.active)
        seen.append((z0, max(0.0, gaps.mean().item())))
        return z0

    monkeypatch.setattr(kto, "baseline", spy)
    run(llama, tmp_path, training__epochs=4, training__learning_rate=5e-3, training__batch_size=5)
    assert [z0 for z0, _ in seen] == pytest.approx([expected for _, expected in seen], abs=1e-4)
    assert max(z0 for z0, _ in seen) > 0.01


def test_validation_and_messages(tmp_path, llama):
    rows = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}], "label": int(r["label"])}
        for r in ROWS
    ]  # fmt: skip
    result = run(llama, tmp_path, rows=rows, data__validation_split=0.4, training__eval_every=1)
    plain = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1)
    for name in ("loss", "validation_loss", "validation_accuracy"):
        assert metric(result, name) == metric(plain, name)
    assert 0 < metric(result, "validation_loss")[-1] < 1


def test_preflight_refuses_a_reference_that_is_not_the_start_and_another_one_is_allowed(tmp_path, llama, monkeypatch):
    other = tiny_folder(tmp_path / "other", seed=5)
    assert run(llama, tmp_path, model__reference=other).metrics[0]["loss"] != pytest.approx(0.5, abs=1e-3)
    real = kto.frozen_reference

    def moved(policy, config, run):
        reference = real(policy, config, run)
        for p in reference.parameters():
            p.add_(0.01 * torch.randn_like(p))
        return reference

    monkeypatch.setattr(kto, "frozen_reference", torch.no_grad()(moved))
    with pytest.raises(UserError, match="preflight: policy and reference differ"):
        run(llama, tmp_path)


def test_refusals(tmp_path, llama):
    with pytest.raises(UserError, match="one row has no other: at least 2"):
        config(llama, tmp_path, training__batch_size=1)
    with pytest.raises(UserError, match="'label' must be true or false"):
        run(llama, tmp_path, rows=[{"prompt": "a", "completion": "b", "label": 0.7}])
    with pytest.raises(UserError, match="expected the columns"):
        run(llama, tmp_path, rows=[{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_bf16(tmp_path, llama):
    for adapter in ("none", "lora"):
        result = run(llama, tmp_path, model__dtype="bfloat16", model__adapter=adapter, output__samples=2)
        # a half exactly: policy and reference are rounded alike, so every r and z0 are 0
        assert metric(result, "loss")[0] == pytest.approx(0.5, abs=1e-5) and metric(result, "z0")[0] == 0
