"""What a step says of itself: sums of sums, means over all tokens, and nothing left for the next step."""

from types import SimpleNamespace

import pytest
import torch

from posttrain.run.meter import Meter

ALONE = SimpleNamespace(reduce=lambda values, how: values)
TWO = SimpleNamespace(reduce=lambda values, how: 2 * values if how == "sum" else None)  # and the other says the same


def filled():
    meter = Meter(torch.device("cpu"))
    loss = torch.tensor(0.5, requires_grad=True)
    meter.add({"loss": loss, "dpo_loss": torch.tensor(0.25)}, {"accuracy": (torch.tensor(1.0), 2)}, tokens=10)
    later = {"accuracy": (3.0, torch.tensor(4)), "unseen": (0.0, 0), "margin": (6.0, 4)}
    meter.add({"loss": torch.tensor(0.25)}, later, tokens=5)
    return meter


def test_terms_are_added_up_and_metrics_are_means_over_their_counts():
    row, tokens = filled().row(ALONE)
    # loss .5 + .25; accuracy (1 + 3) / (2 + 4), not the mean of ½ and ¾; what was never counted is left out
    assert row == {"loss": 0.75, "dpo_loss": 0.25, "accuracy": pytest.approx(4 / 6), "margin": 1.5} and tokens == 15
    assert next(iter(row)) == "loss"


def test_over_processes_terms_add_up_and_means_stay():
    row, tokens = filled().row(TWO)
    assert row["loss"] == 1.5 and row["accuracy"] == pytest.approx(4 / 6) and row["margin"] == 1.5 and tokens == 30


def test_what_has_come_so_far_holds_no_graph_and_is_gone_after_the_row():
    meter = filled()
    assert meter.term("loss").item() == 0.75 and not meter.term("loss").requires_grad
    assert meter.term("nothing").item() == 0 and meter.count_of_all("accuracy") == 6
    assert meter.term_of_all("loss") == 0.75 and meter.count_of_all("nothing") == 0
    meter.row(ALONE)
    assert meter.term("loss").item() == 0 and meter.count_of_all("accuracy") == 0
    meter.add({"loss": torch.tensor(1.0)}, {})
    assert meter.row(ALONE) == ({"loss": 1.0}, 0)
