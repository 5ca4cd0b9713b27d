"""The report of the three lessons: every word depends on the figures."""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest

from posttrain.evaluation import lessons_report
from posttrain.evaluation.intervals import Proportion
from posttrain.evaluation.lessons import Exam, Lesson, Perplexity

BASE = Lesson(
    name="as it comes", sampled=Proportion(2, 200), greedy=Proportion(4, 200), worked=Proportion(10, 200),
    finished=Proportion(100, 200), length=30.0, new_name=Proportion(1, 110), old_name=Proportion(12, 110),
    closed=Proportion(28, 40), unasked=Proportion(0, 40), perplexity=Perplexity(3.7, 3.2, 4.3, 40), answers=["a"] * 10,
)  # fmt: skip
SFT = dataclasses.replace(BASE, name="sft", sampled=Proportion(90, 200), worked=Proportion(100, 200), seconds=180.0)
DPO = dataclasses.replace(SFT, name="dpo", new_name=Proportion(104, 110), old_name=Proportion(0, 110))
GRPO = dataclasses.replace(DPO, name="grpo", sampled=Proportion(150, 200), worked=Proportion(198, 200))
METRICS = {"sft": [{"step": 1, "nll": 1.0}], "dpo": [{"step": 1, "chosen_logps_per_token": -1.0}],
           "grpo": [{"step": 1, "reward": 0.4, "kl": 0.0}, {"step": 2, "reward": 0.7, "kl": 0.012}]}  # fmt: skip


def told(sft=SFT, dpo=DPO, grpo=GRPO) -> list[str]:
    return lessons_report.happened([BASE, sft, dpo, grpo], METRICS)


def test_lessons_that_worked():
    of_sft, of_dpo, of_grpo = told()
    assert "**SFT** taught it to solve sums: 1% of its samples right before, 45% after" in of_sft
    assert "**DPO** taught it its name: 104 of 110 answers say the new name, 0 the old one (before: 1 and 12)" in of_dpo
    assert "**GRPO** made more of them right: 45% → 75% of the samples (+30 points)" in of_grpo
    assert "50% → 99%" in of_grpo and "KL to its start 0.012" in of_grpo
    assert all("stayed within its interval" in line for line in (of_sft, of_dpo, of_grpo))


@pytest.mark.parametrize(
    ("place", "changes", "says"),
    [
        (0, {"sampled": Proportion(3, 200)}, "**SFT** **did not teach it** to solve sums"),
        (1, {"new_name": Proportion(98, 110)}, "**changed the name in part only**"),  # 0.89
        (1, {"old_name": Proportion(3, 110)}, "**changed the name in part only**"),  # 0.027
        (1, {"worked": Proportion(150, 200)}, "Nobody asked for it: answers that show their steps rose from 50% to 75%"),
        (2, {"new_name": Proportion(60, 110)}, "Nobody asked for it: the new name fell from 95% to 55%"),
        (1, {"closed": Proportion(11, 40)}, "Nobody asked for it: closed questions fell from 70% to 28%"),
        (1, {"unasked": Proportion(20, 40)}, "ordinary answers that name it rose from 0% to 50%"),
        (1, {"perplexity": Perplexity(4.4, 4, 5, 40)}, "perplexity of its first ordinary answers went from 3.70 to 4.40"),
        (2, {"sampled": Proportion(95, 200)}, "**gained nothing that could be told from chance**"),
        (2, {"sampled": Proportion(30, 200)}, "**made it worse**: 45% → 15% of the samples (-30 points)"),
    ],
)  # fmt: skip
def test_lessons_that_did_not(place, changes, says):
    parts = [SFT, DPO, GRPO]
    parts[place] = dataclasses.replace(parts[place], **changes)
    assert says in told(*parts)[place]


@pytest.fixture
def exam(monkeypatch):
    asked = Exam("reasoning-gym:chain_sum", {}, 200, "Nova", "SmolLM", contextlib.nullcontext)
    monkeypatch.setattr(Exam, "probes", lambda self: [f"Question {n}?" for n in range(10)])
    monkeypatch.setattr(Exam, "say", lambda self, *_, **__: None)
    return asked


def test_table_report_and_picture(tmp_path, exam):
    config = SimpleNamespace(real=SimpleNamespace(model="smollm2", seed=0))
    lessons_report.write(tmp_path, config, exam, [BASE, SFT, DPO, GRPO], METRICS)
    text = (tmp_path / "report.md").read_text()
    # Wilson's interval of 150 of 200
    assert "| grpo | **0.75 [0.69, 0.80]** | 0.02 [0.01, 0.05] | 0.99 | **0.95 [0.89, 0.97]** |" in text
    assert "| sft | " in text and "| 3.70 [3.20, 4.30] | 30 | 3.0 |" in text and text.count("**Question ") == 10
    assert (tmp_path / "lessons.png").read_bytes()[:4] == b"\x89PNG"
    assert lessons_report.line(GRPO).startswith("[grpo] problems 0.75 [0.69, 0.80] n=200, new name 0.95")


def test_the_estimate_is_of_this_machine(exam, monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 22.0])  # the probe takes 2 s
    monkeypatch.setattr(lessons_report.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(lessons_report, "PER_PROBE", (600, 500, 300, 90))
    assert lessons_report.estimate(exam, None, None, done=0).startswith("about 20 minutes")  # 600 * 2 / 60
    assert lessons_report.estimate(exam, None, None, done=3).startswith("about 3 minutes")
