"""samples.md: the same prompts before and after, and what they were asked for."""

import pytest

from posttrain.run.samples import write_samples


@pytest.mark.parametrize(
    ("method", "about"),
    [
        ("sft", "Greedy answers to the same prompts, before and after this run. ⏹ = the model ended its turn itself."),
        ("reward", "The scores of the same answers, before and after this run."),
        ("pretrain", "The same beginnings, continued greedily before and after this run. ⏹ = the model ended the document."),
    ],
)  # fmt: skip
def test_before_stands_above_after(tmp_path, method, about):
    write_samples(tmp_path / "samples.md", [("Who?", "uh", "Nova ⏹"), ("Why?", "a", "b")], method)
    assert (tmp_path / "samples.md").read_text(encoding="utf-8").splitlines() == [
        "# Samples", "", about, "",
        "**Who?**", "", "- before: `uh`", "- after: `Nova ⏹`", "",
        "**Why?**", "", "- before: `a`", "- after: `b`",
    ]  # fmt: skip
