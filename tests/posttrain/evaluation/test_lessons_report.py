"""The report of the three lessons: every word depends on the figures and on paired tests."""

from types import SimpleNamespace

import pytest

from posttrain.evaluation import lessons_report
from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.scores import Outcome, proportion, ratio

METRICS = {"sft": [{"step": 1, "nll": 1.0, "memory_gib": 1.5}],
           "dpo": [{"step": 1, "chosen_logps_per_token": -1.0, "memory_gib": 2.66}],
           "grpo": [{"step": 1, "reward": 0.4, "kl": 0.0, "memory_gib": 2.0}, {"step": 2, "reward": 0.7, "kl": 0.012}]}  # fmt: skip
BASE = {"sampled": 2, "right": 4, "worked": 10, "new_name": 1, "old_name": 12, "closed": 28, "unasked": 0, "nll": 10.0}
SFT = BASE | {"sampled": 90, "worked": 100}
DPO = BASE | {"new_name": 104, "old_name": 0}
GRPO = SFT | {"sampled": 150, "worked": 198}


def first(hits: int, n: int) -> list[int]:
    """Of n items the first ones are hits: two models with the same number hit the same ones."""
    return [1] * hits + [0] * (n - hits)


def measured(name: str, hits: dict) -> Measured:
    records = [
        {"part": "problems", "prompt": f"p{i}", "answers": [{"text": f"{name} {i}"}], "sampled": [{"text": "=" if w else "", "tokens": 30}]}
        for i, w in enumerate(first(hits["worked"], 200))
    ]  # fmt: skip
    asked = [
        {"part": part, "prompt": f"{part} {i}?", "answers": [{"text": name}]}
        for part in ("identity", "closed", "ordinary")
        for i in range(4)
    ]
    sums = [proportion(k, "", first(hits[k], 200), "problems") for k in ("sampled", "right")]
    names = [proportion(k, "", first(hits[k], 110), "identity") for k in ("new_name", "old_name")]
    rest = [proportion(k, "", first(hits[k], 40), "closed") for k in ("closed", "unasked")]
    # 40 answers of 10 tokens; 10 nats each are e¹ = 2.718
    text = [ratio("perplexity", "", [hits["nll"]] * 40, [10.0] * 40, "documents", scale="exp", better="lower")]
    outcomes = {
        "accuracy": Outcome(sums, records),
        "identity": Outcome(names + rest, asked),
        "perplexity": Outcome(text, []),
    }
    return Measured(name, {}, outcomes)


def results(sft=SFT, dpo=DPO, grpo=GRPO) -> Results:
    models = [measured(*pair) for pair in (("as it comes", BASE), ("sft", sft), ("dpo", dpo), ("grpo", grpo))]
    return Results({"settings": {"dtype": "bfloat16"}}, {}, models)


def test_lessons_that_worked():
    of_sft, of_dpo, of_grpo = lessons_report.happened(results(), METRICS)
    assert "**SFT** taught it to solve sums: 2 of 200 sampled answers right before, 90 of 200 after" in of_sft
    assert (
        "**DPO** taught it its name: 104 of 110 answers give the new name and not the old one, 0 of 110 the old one"
        in of_dpo
    )
    # 60 of 200 more: +30 points
    assert "**GRPO** made more of them right: 90 of 200 → 150 of 200 sampled answers (+30 points, 95 % " in of_grpo
    assert "100 of 200 → 198 of 200, 30 → 30 tokens, KL to its start 0.012" in of_grpo
    assert all("Nothing else that was measured moved" in line for line in (of_sft, of_dpo, of_grpo))


@pytest.mark.parametrize(
    ("place", "changes", "says"),
    [
        (0, {"sampled": 3}, "**SFT** **did not teach it** to solve sums"),
        (0, {"old_name": 60}, "answers with the old name went from 0.11 to 0.55"),
        (1, {"new_name": 98}, "**changed the name in part only**"),  # 0.89
        (1, {"old_name": 3}, "**changed the name in part only**"),  # 0.027
        (1, {"worked": 150}, "Nobody asked for it: answers that show their steps went from 0.05 to 0.75"),
        (1, {"closed": 11}, "closed questions right went from 0.70 to 0.28"),
        (1, {"unasked": 20}, "ordinary answers that name it went from 0.00 to 0.50"),
        (1, {"nll": 12.0}, "the perplexity of its first ordinary answers went from 2.72 to 3.32"),  # e^1.2
        (1, {"closed": 25}, "Nothing else"),  # 3 of 40 fewer, p = 0.25
        (2, {"sampled": 93}, "**gained nothing that could be told from chance**"),  # 3 of 200 more: p = 0.25
        (2, {"sampled": 30}, "**made it worse**: 90 of 200 → 30 of 200 sampled answers (-30 points"),
        (2, {"old_name": 60}, "Nobody asked for it: answers with the old name went from 0.11 to 0.55"),
    ],
)  # fmt: skip
def test_lessons_that_did_not(place, changes, says):
    parts = [SFT, DPO, GRPO]
    parts[place] = parts[place] | changes
    assert says in lessons_report.happened(results(*parts), METRICS)[place]


def test_table_report_and_picture(tmp_path):
    config = SimpleNamespace(real=SimpleNamespace(model="smollm2", seed=0))
    lessons_report.write(tmp_path, config, results(), METRICS, {"sft": 3.0, "dpo": 4.0, "grpo": 5.25})
    text = (tmp_path / "report.md").read_text()
    # Wilson's intervals of 150 of 200, 4 of 200, 198 of 200, 1 of 110
    assert "| grpo | 0.75 [0.69, 0.80] | 0.02 [0.01, 0.05] | 0.99 [0.96, 1.00] | 0.01 [0.00, 0.05] |" in text
    assert "| sft | " in text and "| 2.72 [2.72, 2.72] | 30 | 3.0 |" in text and "| 5.2 |" in text
    assert "in bfloat16" in text and "at most 2.7 GiB of memory" in text and text.count("- as it comes: `") == 10
    assert (tmp_path / "lessons.png").read_bytes()[:4] == b"\x89PNG"
    assert lessons_report.line(results().models[3]).startswith("[grpo] problems right, sampled 0.75 [0.69, 0.80] n=200")


def test_the_estimate_is_of_this_machine(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 22.0])  # the probe takes 2 s
    monkeypatch.setattr(lessons_report.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(lessons_report, "PER_PROBE", (600, 500, 300, 90))
    subject = SimpleNamespace(ask=lambda asked, max_new_tokens: None)
    assert lessons_report.estimate(subject, done=0).startswith("about 20 minutes")  # 600 * 2 / 60
    assert lessons_report.estimate(subject, done=3).startswith("about 3 minutes")
