"""Answers on their way through an update: columns lie under the tokens they belong to, whatever the batch."""

from types import SimpleNamespace

import pytest
import torch
from kit import whole_models

from posttrain.rollouts.answers import Answer, ask_all, in_flight, lay_out, mean_gap, sampled
from posttrain.rollouts.sampling import Rollout
from posttrain.run.checkpoint_files import plain
from posttrain.tokens.batch import Example
from posttrain.tokens.shared import Sharing

SHORT = Answer(Example.of([5], [8]), {"logps": torch.tensor([-3.0])}, 0.5, False)
LONG = Answer(Example.of([5, 6], [7, 9]), {"logps": torch.tensor([-1.0, -2.0])}, 1.0, True)


def run_of(size, others=1, sharing=None):
    """One process of `others`, each of which would say the same, with micro-batches of `size`."""
    return SimpleNamespace(
        training=SimpleNamespace(micro_batch_size=size), device="cpu", sum_over_processes=lambda value: others * value,
        parallel=whole_models(lambda: torch.autocast("cpu", torch.bfloat16)), sharing=sharing or Sharing(False),
    )  # fmt: skip


def test_columns_lie_under_the_tokens_that_they_belong_to():
    batch = lay_out([LONG, SHORT], pad_id=0)
    # row 0: 5 6 7 9, predictions of 6, 7, 9; row 1: 5 8, then padding
    assert batch.input_ids.tolist() == [[5, 6, 7, 9], [5, 8, 0, 0]]
    assert batch["logps"].tolist() == [[0.0, -1.0, -2.0], [-3.0, 0.0, 0.0]]
    with pytest.raises(KeyError):  # a name that is misspelt is no column that is not there
        batch["ref_logp"]
    assert batch.to("meta")["logps"].device.type == "meta"


def test_a_muted_answer_keeps_its_place_and_says_nothing():
    batch = lay_out([LONG.muted(), SHORT], pad_id=0)
    assert batch["logps"].tolist() == [[0.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]
    assert LONG.muted().reward == 1.0 and len(LONG.muted()) == 4


def test_columns_are_added_and_replaced_in_a_copy():
    more = SHORT.with_columns({"logps": torch.tensor([-4.0]), "values": torch.tensor([2.0])})
    assert more.columns == {"logps": torch.tensor([-4.0]), "values": torch.tensor([2.0])}
    assert SHORT.columns == {"logps": torch.tensor([-3.0])}


def test_what_was_sampled_has_the_samplers_log_probs():
    rollout = Rollout([[5], [6]], [[7, 2], [8]], [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])], [True, False])
    first, second = sampled(rollout, [0.25, 0.75])
    assert first.example == Example([5, 7, 2], [False, True, True]) and second.example.input_ids == [6, 8]
    assert first.columns["sampler_logps"].tolist() == [-1.0, -2.0] and second.columns["sampler_logps"].tolist() == [
        -3.0
    ]
    assert (first.reward, first.finished, second.reward, second.finished) == (0.25, True, 0.75, False)


def test_every_answer_is_asked_once_longest_together_and_keeps_its_place():
    asked = []

    def forward(batch):
        asked.append(batch.input_ids.shape)
        assert torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        return {"last": batch.input_ids[:, 1:].bfloat16()}  # each prediction says which token it predicts

    middle = Answer(Example.of([1], [2, 3]), {}, 0.0, True)
    out = ask_all([SHORT, LONG, middle], run_of(2), 0, forward)
    assert asked == [(2, 4), (1, 2)]  # 4 and 3 tokens in one batch, the 2 in another
    assert [answer.columns["last"].tolist() for answer in out] == [[8.0], [7.0, 9.0], [2.0, 3.0]]
    sharing = Sharing(True)
    sharing.on = True  # then as they come, group by group, so that a prompt's answers meet
    assert ask_all([SHORT, LONG, middle], run_of(2, sharing=sharing), 0, forward)[1].columns["last"].tolist() == [
        7.0,
        9.0,
    ]
    assert asked[2:] == [(2, 4), (1, 3)]
    assert out[0].columns["last"].dtype == torch.float32 and out[0].columns["logps"].tolist() == [-3.0]


def test_a_rollout_in_flight_comes_back_from_a_checkpoint():
    saved = plain({"answers": {0: [SHORT], 1: [LONG, SHORT]}})
    assert isinstance(saved["answers"][0][0], dict)  # nothing that would have to be unpickled
    first, second = in_flight(saved, [1])
    assert (first.example, first.reward, first.finished) == (LONG.example, 1.0, True)
    assert torch.equal(first.columns["logps"], LONG.columns["logps"]) and second.example == SHORT.example


def test_the_mean_gap_is_over_tokens_of_all_processes():
    one = LONG.with_columns({"ref": torch.tensor([-1.5, -2.0])})
    two = SHORT.with_columns({"ref": torch.tensor([-2.0])})
    # (.5 + 0) + (−1) = −.5 over three tokens; a second process with the same changes no mean
    assert mean_gap([one, two], "logps", "ref", run_of(1)) == pytest.approx(-0.5 / 3)
    assert mean_gap([one, two], "logps", "ref", run_of(1, others=2)) == pytest.approx(-0.5 / 3)
    assert mean_gap([one], "ref", "logps", run_of(1)) == pytest.approx(-0.25)
