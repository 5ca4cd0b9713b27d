"""A page that takes the steps of the sound one is mended; one that does not run is one sentence."""

import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.exercises import mended


def test_the_sound_page_written_otherwise_is_mended(tmp_path):
    text = (ROOT / "minimal/dpo.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(text.replace("loss = loss + SFT_WEIGHT * nll", "loss = SFT_WEIGHT * nll + loss"), encoding="utf-8")
    lines, solved = mended.compare("dpo", mine)
    assert solved and "the mistake is gone" in lines[-1]


def test_another_loss_or_the_same_losses_with_another_update_are_not(tmp_path):
    text = (ROOT / "minimal/dpo.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(text.replace("BETA = 0.1", "BETA = 0.2"), encoding="utf-8")
    lines, solved = mended.compare("dpo", mine)
    # the margin is 0 at the first step whatever β is, so the loss is the same there and differs from the second on
    assert not solved and "different from step 2 on" in lines[-1]


def test_a_page_that_does_not_run(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def train(steps, dtype):\n    return 1 / 0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.py does not run: ZeroDivisionError"):
        mended.compare("dpo", mine)
