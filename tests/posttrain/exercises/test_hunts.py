"""Ten pages with one mistake each: made from minimal/, unmarked, and different from the sound page within a few steps."""

import ast
import difflib

import museum
import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.exercises import mended
from posttrain.exercises.hunts import HUNTS, Hunt


def test_ten_over_all_four_loops_each_from_the_museum():
    assert len(HUNTS) == 10 and {hunt.page for hunt in HUNTS} == {"sft", "dpo", "grpo", "ppo"}
    for hunt in HUNTS:
        exhibit = hunt.told.rstrip(".").rpartition("Museum: ")[2]
        assert callable(getattr(museum, exhibit)), hunt.name
    assert len({hunt.told for hunt in HUNTS}) == 10


@pytest.mark.parametrize("hunt", HUNTS, ids=lambda hunt: hunt.name)
def test_the_page_differs_in_a_few_unmarked_lines(hunt):
    sound = (ROOT / f"minimal/{hunt.page}.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    page = hunt.text()
    ast.parse(page)
    body = page.partition('"""\n\n')[2]
    changed = [line for line in difflib.ndiff(sound.splitlines(), body.splitlines()) if line[0] in "+-"]
    assert 1 <= len(changed) <= 20
    for word in ("wrong", "mistake", "museum", "bug"):
        assert word not in body.lower()
    for name in ("Museum", hunt.told.rpartition("Museum: ")[2].rstrip(".")):
        assert name not in page


@pytest.mark.parametrize("hunt", HUNTS, ids=lambda hunt: hunt.name)
def test_its_curves_are_recorded_beside_those_of_the_sound_page(hunt):
    sound, sick = hunt.curves()
    assert len(sound) == len(sick) >= 15 and set(sound[0]) == set(sick[0])
    assert any(a != b for a, b in zip(sound, sick, strict=True))


def test_a_change_that_no_longer_fits_is_said():
    with pytest.raises(UserError, match=r"minimal/sft.py does not hold this once"):
        Hunt("x", "sft", "", (("no such line", ""),), "").text()


@pytest.mark.long
@pytest.mark.parametrize("hunt", HUNTS, ids=lambda hunt: hunt.name)
def test_a_few_steps_tell_it_from_the_sound_page(hunt, tmp_path):
    file = tmp_path / "page.py"
    file.write_text(hunt.text(), encoding="utf-8")
    lines, solved = mended.compare(hunt.page, file)
    assert not solved and "still there" in lines[-1]
