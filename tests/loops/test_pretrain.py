import json
from functools import partial

import pytest
import torch
from kit import run_loop

from loops import pretrain
from posttrain.config import load
from posttrain.errors import UserError

run = partial(run_loop, pretrain, output__samples=1)


@pytest.mark.draws
def test_the_first_loss_is_that_of_knowing_nothing(tmp_path):
    result = run(None, tmp_path)
    # a random model of this width says about the same of each of 814 tokens: log 814 = 6.70
    assert result.metrics[0]["loss"] == pytest.approx(6.70, abs=0.1)
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"]
    assert "continued greedily before and after" in (tmp_path / "run/samples.md").read_text()
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000


def test_micro_batches_make_the_same_run(tmp_path):
    runs = [run(None, tmp_path / str(n), training__micro_batch_size=n) for n in (1, 2)]
    for a, b in zip(runs[0].metrics, runs[1].metrics, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_resumed_it_is_the_same_run_to_the_bit(tmp_path):
    whole = run(None, tmp_path / "whole")
    run(None, tmp_path, training__save_every=2)
    for path in (tmp_path / "run/model", tmp_path / "run/checkpoints/step_4"):
        path.rename(tmp_path / path.name)
    again = run(None, tmp_path, training__save_every=2, resume=True, output__overwrite=False)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in whole.metrics]
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_your_own_text_and_the_row_that_has_none(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i} + {i} = {2 * i}. "}) for i in range(200)))
    assert len(run(None, tmp_path, data__name=str(file)).metrics) == 4
    file.write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"words": "b"}))
    with pytest.raises(UserError, match="row 2: expected a column `text` that holds text; found words"):
        run(None, tmp_path / "other", data__name=str(file))


def test_below_the_min_score_nothing_is_saved(tmp_path):
    with pytest.raises(UserError, match=r"base_skill gives 0.000, pretrain.min_score is 0.98: not saved"):
        run(None, tmp_path, pretrain__check="posttrain.evaluation.rungs:base_skill")
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain__separator": "<|none|>"}, "'<|none|>' is no token of the tokenizer"),
        ({"model__type": "lama"}, "model.type 'lama' cannot be made"),
        ({"model__tokenizer": "/nowhere"}, "model.tokenizer '/nowhere': cannot be loaded"),
        (
            {"pretrain__check": "posttrain.evaluation.rungs:nothing"},
            "pretrain.check 'posttrain.evaluation.rungs:nothing'",
        ),
        ({"training__eval_every": 2}, "loops.pretrain evaluates nothing"),
        ({"data__name": "tiny-math"}, "expected a column `text`"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(UserError) as problem:
        run(None, tmp_path, **changes)
    assert message in str(problem.value)


def test_its_text_is_for_no_other_loop(tmp_path):
    from loops import sft

    with pytest.raises(UserError, match=r"tiny-text is text without an end, for loops.pretrain"):
        sft.train(load("configs/sft_tiny.yaml", {"data.name": "tiny-text", "output.dir": str(tmp_path / "run")}))
