"""What reward functions may log, and what they must not."""

import numpy as np
import pytest
import torch

from posttrain.errors import UserError
from posttrain.rollouts.calling import call_all
from posttrain.rollouts.logged import Logged, TrainerState


def test_a_metric_is_summed_and_counted():
    logged = Logged()
    for value in (1, 0.5, torch.tensor(2.0), np.float32(0.5), True):
        logged.log_metric("accuracy", value)
    logged.log_metric(name="other", value=3)
    assert logged.sums() == {"accuracy": (5.0, 5), "other": (3.0, 1)}  # 1 + .5 + 2 + .5 + 1


def test_a_column_is_what_json_has_of_it():
    logged = Logged()
    values = [{"steps": [1, 2]}, None]
    logged.log_extra("judge", values)
    values[0]["steps"].append(3)
    logged.log_extra(column="scores", values=torch.tensor([1.5, 2.5]))
    logged.log_extra("mixed", (np.int64(4), TrainerState(1, 2, None, None, True)))
    assert logged.columns["judge"] == [{"steps": [1, 2]}, None] and logged.columns["scores"] == [1.5, 2.5]
    assert logged.columns["mixed"][0] == 4 and logged.columns["mixed"][1].startswith("TrainerState(global_step=1")
    logged.refuse_uneven(2)


def test_a_column_may_come_in_pieces_but_whole():
    logged = Logged()
    for text in ("a", "b"):
        logged.log_extra("said", [text])
    logged.refuse_uneven(2)
    with pytest.raises(UserError, match="log_extra: the column 'said' got 2 values for 3 completions"):
        logged.refuse_uneven(3)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (lambda log_metric: log_metric("x", "1.0"), r"TypeError: log_metric\('x', '1.0'\): expected a name and a number"),
        (lambda log_metric: log_metric(1, 1.0), r"TypeError: log_metric\(1, 1.0\): expected a name and a number"),
        (lambda log_metric: log_metric("x", 10**400), "OverflowError: int too large"),
        (lambda log_metric: log_metric("x", torch.zeros(2)), "ValueError: only one element"),
        (lambda log_extra: log_extra("x", "ab"), r"TypeError: log_extra\('x', 'ab'\): expected a name and a list"),
        (lambda log_extra: log_extra("x", {"a": 1, "b": 2}), "TypeError: log_extra.*expected a name and a list"),
        (lambda log_extra: log_extra(("x",), ["a", "b"]), "TypeError: log_extra.*expected a name and a list"),
        (lambda log_extra: log_extra("x", 1.0), "TypeError: 'float' object is not iterable"),
        (lambda trainer_state: setattr(trainer_state, "global_step", 0), "FrozenInstanceError: cannot assign to field"),
        (lambda trainer_state: trainer_state.log_history, "AttributeError: 'TrainerState' object has no attribute 'log_history'"),
    ],
)  # fmt: skip
def test_what_cannot_be_logged_names_the_function(log, said):
    logged = Logged()
    available = {
        "completions": ["a", "b"], "log_metric": logged.log_metric, "log_extra": logged.log_extra,
        "trainer_state": TrainerState(3, 10, 0.5, 2, True),
    }  # fmt: skip
    with pytest.raises(UserError, match=f"reward function '<lambda>' failed with {said}"):
        call_all([log], available)
