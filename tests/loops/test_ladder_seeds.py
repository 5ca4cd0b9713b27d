"""The whole ladder over three seeds, by hand (make soak, about three minutes): the ranges the README's table lies in."""

import pytest

from loops import ladder
from posttrain import ROOT
from posttrain.config import load


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranges(tmp_path, seed):
    config = load(ROOT / "configs/ladder_tiny.yaml", {"output.dir": str(tmp_path / "ladder"), "ladder.seed": seed})
    base, sft, dpo, grpo = ladder.run(config)
    assert base.arithmetic.value == 0
    assert 0.30 <= sft.arithmetic.value <= 0.55 and sft.old_name.value >= 0.85
    assert dpo.new_name.value >= 0.85 and dpo.new_name.value >= sft.old_name.value - 0.05
    assert abs(dpo.arithmetic.value - sft.arithmetic.value) <= 0.12
    assert grpo.arithmetic.value >= dpo.arithmetic.value + 0.30 and grpo.worked.value >= 0.95 and grpo.kl <= 0.15
