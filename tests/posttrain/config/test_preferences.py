"""Which keys belong to which loss, and what stands where they are left out."""

import pytest

from posttrain.config import load
from posttrain.config.loading import save
from posttrain.errors import UserError


def made(method, **keys):
    return load(None, {"model.name": "x", **{f"{method}.{key}": value for key, value in keys.items()}}, method=method)


def test_defaults_of_the_chosen_loss_alone():
    assert made("dpo").dpo.penalty is None and made("dpo", loss="dpop").dpo.penalty == 50
    assert made("dpo", loss="dpop", penalty=3).dpo.penalty == 3
    simpo, orpo = made("simpo").simpo, made("simpo", loss="orpo").simpo
    assert (simpo.beta, simpo.gamma, simpo.odds_weight) == (2, 0.5, None)
    assert (orpo.beta, orpo.gamma, orpo.odds_weight) == (None, None, 0.1)


@pytest.mark.parametrize(
    ("method", "keys"), [("dpo", {"loss": "dpop"}), ("simpo", {"loss": "orpo"}), ("simpo", {}), ("kto", {})]
)
def test_what_was_filled_in_reads_back(tmp_path, method, keys):
    config = made(method, **keys)
    save(config, tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("dpo", {"penalty": 0}, "dpo.penalty belongs to dpo.loss: dpop; sigmoid does not read it: leave it out"),
        ("simpo", {"odds_weight": 1}, "simpo.odds_weight belongs to simpo.loss: orpo; simpo does not read it"),
        ("simpo", {"loss": "orpo", "gamma": 0.5}, "simpo.gamma belongs to simpo.loss: simpo; orpo does not read it"),
        ("kto", {"desirable_weight": 0, "undesirable_weight": 0}, "both 0: nothing would be learned"),
    ],
)
def test_refusals(method, keys, message):
    with pytest.raises(UserError) as told:
        made(method, **keys)
    assert message in str(told.value)


def test_kto_needs_two_rows_in_a_step():
    with pytest.raises(UserError, match="one row has no other: at least 2"):
        load(None, {"model.name": "x", "training.batch_size": 1}, method="kto")
