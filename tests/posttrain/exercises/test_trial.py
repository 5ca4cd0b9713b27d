"""The losses' own tests on somebody's function: what is right passes, what is wrong is named with its number."""

import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.exercises import trial
from posttrain.exercises.blanks import BLANKS

DPO = next(blank for blank in BLANKS if blank.name == "dpo")


def tried(blank, text, folder):
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    return trial.outcomes(blank.module, blank.functions, file, blank.purity)


def test_a_flipped_sign_is_named_with_the_number_that_gives_it_away(tmp_path):
    source = (ROOT / "losses/dpo.py").read_text(encoding="utf-8")
    wrong = source.replace("margin = rewards_chosen - rewards_rejected", "margin = rewards_chosen + rewards_rejected")
    assert wrong != source
    lines = trial.told(tried(DPO, wrong, tmp_path))
    at = lines.index("✗ the value of the pencil example")
    assert "0.1 · (1 + 1) = 0.2" in lines[at + 1]  # the arithmetic of the test
    assert "0.598139" in lines[at + 2] and "0.6931" in lines[at + 3]  # h = 0.1 − 0.1 = 0: −log σ(0) = ln 2
    # a gradient that stops at the reference is still right, so that property is not among those that fail
    assert not any("neither the reference" in line for line in lines)


def test_an_empty_stub_says_what_is_to_be_written(tmp_path):
    lines = trial.told(tried(DPO, DPO.stub(), tmp_path))
    assert "not written yet" in lines[0] and lines[1:] == [
        "    dpo_loss: rewards_chosen, rewards_rejected, margin [B]; loss [], with label smoothing"
    ]


@pytest.mark.long
@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: blank.name)
def test_the_projects_own_file_has_every_property_and_the_stub_none_of_the_first(blank, tmp_path):
    own = tried(blank, (ROOT / blank.module).read_text(encoding="utf-8"), tmp_path)
    assert len(own) >= 9 and all(outcome.passed for outcome in own)
    assert "tests pass: it has every property" in trial.told(own)[0]
    assert not all(outcome.passed for outcome in tried(blank, blank.stub(), tmp_path))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"mine.py: SyntaxError"):
        tried(DPO, "def dpo_loss(:", tmp_path)
    with pytest.raises(UserError, match=r"mine.py: it has no function dpo_loss"):
        tried(DPO, "x = 1\n", tmp_path)
    with pytest.raises(UserError, match=r"test_nowhere.py: no such file"):
        trial.outcomes("losses/nowhere.py", ("f",), tmp_path / "mine.py")


def test_a_property_without_words_of_its_own_is_its_tests_name():
    outcome = trial.Outcome("test_label_smoothing[0.1]", False, ("assert 1 == 2",))
    assert outcome.property == "label smoothing"
    assert trial.told([outcome]) == [
        "0 of 1 tests pass; what fails, the first 5 properties:", "", "✗ label smoothing", "    assert 1 == 2"
    ]  # fmt: skip
