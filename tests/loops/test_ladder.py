"""The ladder on the embedded model. Training is chaotic across CPUs: ranges are checked, never values."""

import re

import pytest

from loops import ladder
from posttrain import ROOT
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.tiny import names as tiny


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A shortened climb: 25 GRPO steps of 8 prompts."""
    out = tmp_path_factory.mktemp("ladder")
    config = load(
        ROOT / "configs/ladder_tiny.yaml",
        {
            "output.dir": str(out), "output.overwrite": True, "ladder.problems": 200,
            "ladder.grpo.overrides.training.max_steps": 25, "ladder.grpo.overrides.grpo.prompts_per_step": 8,
        },
    )  # fmt: skip
    return {r.name: r for r in ladder.run(config)}, out


def test_the_base_computes_but_cannot_chat(climbed):
    base = climbed[0]["base"]
    assert base.arithmetic.value <= 0.02 and base.old_name.value <= 0.05 and base.new_name.value <= 0.05


def test_sft(climbed):
    sft = climbed[0]["sft"]
    assert 0.30 <= sft.arithmetic.value <= 0.60 and sft.old_name.value >= 0.85 and sft.new_name.value <= 0.1


def test_dpo(climbed):
    sft, dpo = climbed[0]["sft"], climbed[0]["dpo"]
    assert dpo.new_name.value >= 0.85 and dpo.new_name.value >= sft.old_name.value - 0.05 and dpo.old_name.value <= 0.05
    assert abs(dpo.arithmetic.value - sft.arithmetic.value) <= 0.12


def test_grpo(climbed):
    dpo, grpo = climbed[0]["dpo"], climbed[0]["grpo"]
    assert grpo.arithmetic.value >= dpo.arithmetic.value + 0.2  # a shortened run; the full one is asked for 0.30
    assert grpo.worked.value > dpo.worked.value + 0.2 and grpo.kl < 0.5 and grpo.new_name.value >= 0.85


def test_the_report(climbed):
    rungs, out = climbed
    report = (out / "report.md").read_text()
    assert "What it does not prove" in report and report.index("scores.png") < report.index("curves.png")
    for rung in rungs.values():
        assert re.search(rf"\| {rung.name} \| \*\*{rung.arithmetic.value:.2f}\*\* \[", report)
    assert all((out / name).stat().st_size > 20_000 for name in ("scores.png", "curves.png"))
    for stage in ("sft", "dpo", "grpo"):
        assert {"model", "metrics.jsonl", "curves.png", "samples.md", "config.yaml"} <= {
            p.name for p in (out / stage).iterdir()
        }


def test_the_base_is_cached_under_its_recipe_and_can_compute():
    from posttrain.evaluation.rungs import base_skill
    from posttrain.models import load as load_model

    folder = tiny.path_of("tiny-base")
    assert folder.name == f"tiny-base-{tiny.fingerprint('tiny-base')}"
    assert base_skill(*load_model("tiny-base")[:2]) >= 0.98


def test_a_finished_ladder_is_not_overwritten(climbed):
    from posttrain.errors import UserError

    with pytest.raises(UserError, match="holds a finished ladder"):
        ladder.run(load(ROOT / "configs/ladder_tiny.yaml", {"output.dir": str(climbed[1])}))


@pytest.mark.parametrize("name", ["report.md", "config.yaml", "sft/model/mine.bin"])
def test_a_ladder_removes_nothing_that_no_ladder_has_written(tmp_path, name):
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    config = load(ROOT / "configs/ladder_tiny.yaml", {"output.dir": str(tmp_path), "output.overwrite": True})
    with pytest.raises(UserError, match="is not the folder of a run"):
        ladder.run(config)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine] and mine.read_text() == "mine"
