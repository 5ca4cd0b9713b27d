"""Every blank is the file of losses/ minus the lines that are the loss, and stub plus answer is the file again."""

import ast

import pytest

from posttrain import ROOT
from posttrain.errors import UserError
from posttrain.exercises.blanks import BLANKS, Blank, Hole

BY_NAME = {blank.name: blank for blank in BLANKS}


def test_what_there_is():
    assert {"sft", "dpo", "ipo", "advantages", "k3", "grpo", "gae", "ppo"} <= set(BY_NAME)


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: blank.name)
def test_the_stub_keeps_equation_shapes_and_pencil_numbers_and_not_the_answer(blank):
    stub, source = blank.stub(), (ROOT / blank.module).read_text(encoding="utf-8")
    tree = ast.parse(stub)
    assert ast.get_docstring(tree) == ast.get_docstring(ast.parse(source)) and ">>> " in stub
    assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} >= set(blank.functions)
    assert "walk_through" not in stub
    for hole in blank.holes:
        assert f"# YOUR LINES: {hole.wanted}" in stub
    code = stub.partition('"""\n\n')[2]
    for line in blank.answer().splitlines():
        if line.strip() and not line.startswith("#") and "return" not in line:
            # (the sum of the policy's loss is given, that of the value's is asked for)
            assert line not in code or (blank.name == "ppo" and "loss =" in line), line


def test_the_dpo_stub():
    stub, answer = BY_NAME["dpo"].stub(), BY_NAME["dpo"].answer()
    wanted = "rewards_chosen, rewards_rejected, margin [B]; loss [], with label smoothing"
    assert f'    # YOUR LINES: {wanted}\n    raise NotImplementedError("dpo_loss: {wanted}")\n' in stub
    assert answer.startswith("# dpo_loss\n    rewards_chosen") and answer.endswith(
        "loss = (weights * per_pair).sum()\n"
    )
    assert "    margin = rewards_chosen - rewards_rejected" in answer and "logsigmoid(margin)" not in stub


def test_the_helper_that_would_give_the_surrogate_away_is_not_imported():
    assert "clipped_surrogate" not in BY_NAME["grpo"].stub() and "surrogate_metrics" in BY_NAME["grpo"].stub()


def test_a_hole_that_is_not_there_is_said():
    lost = Blank("x", "x", "losses/sft.py", (Hole("completion_cross_entropy", "no such line", "loss =", "x"),))
    with pytest.raises(UserError, match=r"losses/sft.py, completion_cross_entropy: no line begins with 'no such line'"):
        lost.stub()
