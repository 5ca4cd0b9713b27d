"""SimPO and ORPO: no reference; the first step is what the mean log-probs of the pairs give."""

import math
from functools import partial

import pytest
from kit import metric, run_loop, small_config

from loops import simpo
from posttrain.errors import UserError

ROWS = [
    {
        "prompt": f"Question {i}?",
        "chosen": f"Yes, {i}." + " Sure." * (i % 3),
        "rejected": f"No, {i}." + " Never." * (i % 2),
    }
    for i in range(1, 6)
]
config, run = partial(small_config, "simpo"), partial(run_loop, simpo, rows=ROWS)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_it_learns_and_does_not_depend_on_how_a_step_is_cut(tmp_path, llama, loss):
    more = {"simpo__loss": loss, "training__epochs": 4}
    whole = run(llama, tmp_path, **more, training__micro_batch_size=4)
    assert (
        metric(whole, "margin")[-1] > metric(whole, "margin")[0]
        and metric(whole, "loss")[-1] < metric(whole, "loss")[0]
    )
    apart = run(llama, tmp_path, **more, training__micro_batch_size=1)
    for name in ("loss", "grad_norm", "margin", "chosen_logps_per_token"):
        assert metric(apart, name)[:2] == pytest.approx(metric(whole, name)[:2], rel=1e-4, abs=2e-5), name


def test_simpo_of_one_pair_is_its_formula(tmp_path, llama):
    """−log σ(β (mean_w − mean_l) − γ) of one pair, from the per-token means that the run itself logs."""
    first = run(llama, tmp_path, rows=ROWS[:1], simpo__beta=3, simpo__gamma=1.5).metrics[0]
    lead = 3 * (first["chosen_logps_per_token"] - first["rejected_logps_per_token"])
    assert first["margin"] == pytest.approx(lead, abs=1e-4)
    assert first["loss"] == pytest.approx(math.log1p(math.exp(1.5 - lead)), abs=1e-4)


def test_orpo_of_one_pair_is_its_formula(tmp_path, llama):
    """NLL + λ · −log σ(logit p_w − logit p_l)."""
    first = run(llama, tmp_path, rows=ROWS[:1], simpo__loss="orpo", simpo__odds_weight=0.5).metrics[0]
    chosen, rejected = first["chosen_logps_per_token"], first["rejected_logps_per_token"]
    odds = [x - math.log(-math.expm1(x)) for x in (chosen, rejected)]
    term = math.log1p(math.exp(odds[1] - odds[0]))
    assert first["loss"] == pytest.approx(-chosen + 0.5 * term, abs=1e-4)


def test_validation_and_lora(tmp_path, llama):
    result = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1, model__adapter="lora")
    assert 0 <= metric(result, "validation_accuracy")[-1] <= 1 and metric(result, "validation_loss")[-1] > 0
    assert metric(result, "p_stop")[0] >= 0


def test_a_model_without_a_reference_has_no_key_for_one(tmp_path):
    with pytest.raises(UserError, match="unknown key 'reference' in model"):
        config("x", tmp_path, model__reference="copy")


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_bf16(tmp_path, llama, loss):
    """The first loss is float32's, but for the rounding of log-probs."""
    for adapter in ("none", "lora"):
        both = [
            run(llama, tmp_path, model__dtype=d, model__adapter=adapter, simpo__loss=loss)
            for d in ("float32", "bfloat16")
        ]
        assert metric(both[1], "loss")[0] == pytest.approx(metric(both[0], "loss")[0], rel=0.05)
