"""The report tells what the numbers say: the same sentences are not printed over a success and over a failure."""

from dataclasses import replace

import pytest

from posttrain.evaluation.rungs import Rung
from posttrain.evaluation.scores import proportion
from posttrain.evaluation.verdicts import change, does_not_prove, happened


def of(share, n=100):
    return proportion("", "", [i < round(share * n) for i in range(n)], "")


def rung(name, **changes):
    nothing = dict(
        arithmetic=of(0), worked=of(0), old_name=of(0), new_name=of(0), facts=of(0), sampled=of(0), pass_at=of(0)
    )
    return Rung(name, kl=0.1, answers=[], **nothing | changes)


BASE = rung("base", worked=of(0.2))
SFT = rung("sft", arithmetic=of(0.42), worked=of(0.4), old_name=of(1), facts=of(0.98), pass_at=of(0.84))
DPO = replace(SFT, name="dpo", old_name=of(0), new_name=of(1), facts=of(0.97))
GRPO = replace(DPO, name="grpo", arithmetic=of(0.94), worked=of(1))


def test_overlapping_intervals_are_no_change():
    # 50 of 100: [.40, .60]; 59 of 100: [.49, .68] overlaps it; 75 of 100: [.66, .82] does not
    assert change(of(0.5), of(0.59)) == "neither"
    assert change(of(0.5), of(0.75)) == "rose" and change(of(0.75), of(0.5)) == "fell"


def test_a_ladder_that_worked():
    sft, dpo, grpo = happened([BASE, SFT, DPO, GRPO])
    assert "**SFT** taught it to answer: 0% of the problems solved before, 42% after." in sft
    assert "It calls itself Robin (100%). It copied both annotators: 40%" in sft
    assert "**DPO** changed the name: Nova 0% → 100%, Robin 100% → 0%." in dpo
    assert (
        "Not moved by more than chance: word problems 42% → 42%, facts 98% → 97%." in dpo and "Nobody asked" not in dpo
    )
    assert (
        "only right or wrong: 42% → 94% of the problems (+52 points)." in grpo and "The name stayed (100% Nova)" in grpo
    )
    assert "Most of GRPO's gain is a habit" in does_not_prove([BASE, SFT, DPO, GRPO])[0]


def test_a_ladder_that_failed_says_so():
    mute = replace(SFT, arithmetic=of(0.01), old_name=of(0.3), worked=of(0.95))
    sft, dpo, grpo = happened([BASE, mute, replace(mute, name="dpo"), replace(mute, name="grpo")])
    assert "**SFT did not teach it to answer**: 0% of the problems solved before, 1% after." in sft
    assert "It does not know its name: Robin in 30%" in sft and "copied one annotator only: 95%" in sft
    assert "**DPO did not change the name**: Nova 0% → 0%, Robin 30% → 30%." in dpo
    assert "**GRPO gained nothing that could be told from chance**: 1% → 1%" in grpo and "name" not in grpo
    assert all("GRPO's gain" not in line for line in does_not_prove([BASE, mute, mute, mute]))


@pytest.mark.parametrize(
    ("dpo", "sentence"),
    [
        (replace(DPO, new_name=of(0.7), old_name=of(0.3)), "**DPO changed the name in part only**: Nova 0% → 70%"),
        (replace(DPO, facts=of(0.5)), "Nobody asked it to move, and it did: facts fell from 98% to 50%."),
        (replace(DPO, arithmetic=of(0.9)), "and it did: word problems rose from 42% to 90%."),
    ],
)
def test_half_a_success_and_side_effects(dpo, sentence):
    assert sentence in happened([BASE, SFT, dpo, GRPO])[1]


def test_grpo_that_forgets_or_gets_worse_or_learns_something_new():
    worse = replace(GRPO, arithmetic=of(0.1), new_name=of(0.4))
    assert "**GRPO made it worse**: 42% → 10% of the problems (-32 points)." in happened([BASE, SFT, DPO, worse])[2]
    assert "The name did not stay (40% Nova)" in happened([BASE, SFT, DPO, worse])[2]
    assert "more than a habit" in does_not_prove([BASE, SFT, replace(DPO, pass_at=of(0.5)), GRPO])[0]


def test_roads_beside_grpo_are_judged_in_the_same_way():
    lines = happened([BASE, SFT, DPO, GRPO, replace(DPO, name="ppo"), replace(GRPO, name="best_of_k")])
    assert "**PPO (a critic in place of groups) gained nothing" in lines[3] and "**Best of k" in lines[4]
