"""Suite lm-eval:TASK: the shipped tasks end to end, offline; what lm-eval found becomes scores and records."""

import sys
from pathlib import Path

import pytest
from kit import write_jsonl

from posttrain import ROOT
from posttrain.config.command_line import suite_options
from posttrain.config.suites import Evaluation, LmEvalTask
from posttrain.errors import UserError
from posttrain.evaluation import harness
from posttrain.evaluation.comparing import difference
from posttrain.evaluation.subjects import Subject
from posttrain.models import lora
from posttrain.tiny import names as tiny

NAMES, SUMS = ROOT / "benchmarks/lm_eval/tiny_names.yaml", ROOT / "benchmarks/lm_eval/tiny_sums.yaml"


def sample(i, **more):
    return {"doc_id": i, "filter": "none", "target": "x", "arguments": [(f"q{i}", " a"), (f"q{i}", " b")], "metrics": ["acc"],
            "filtered_resps": [(-2.0, False), (-1.0, True)], "resps": [[0], [0]]} | more  # fmt: skip


def found(hits, error=0.1, value=None):
    value = sum(hits) / len(hits) if value is None else value
    return {
        "results": {"t": {"alias": "t", "acc,none": value, "acc_stderr,none": error}},
        "higher_is_better": {"t": {"acc": True}},
        "samples": {"t": [sample(i, acc=hit) for i, hit in reversed(list(enumerate(hits)))]},
    }


def test_its_stderr_is_the_interval_and_its_samples_are_the_items():
    made = harness.outcome(found([1.0, 0.0, 1.0, 1.0]), ["t"])
    (score,) = made.scores
    # 3 of 4; .75 ± 1.96 · .1
    assert (score.name, score.value, score.kind, score.better) == ("acc", 0.75, "proportion", "higher")
    assert (score.low, score.high) == pytest.approx((0.554, 0.946)) and score.items == [1, 0, 1, 1]
    assert [r["prompt"] for r in made.records] == ["q0", "q1", "q2", "q3"]  # the order of the items
    assert made.records[1] == {"part": "t", "prompt": "q1", "wanted": "x", "acc": 0.0, "answers": [{"text": "b"}]}
    wide = harness.outcome(found([1.0, 0.0], error=0.5), ["t"]).scores[0]
    assert (wide.low, wide.high) == (0.0, 1.0)
    # all right: lm-eval's error is 0, Wilson's 4 of 4 begins at 4 / (4 + 1.96²) = .5101
    sure = harness.outcome(found([1.0] * 4, error=0.0), ["t"]).scores[0]
    assert (sure.low, sure.high) == (pytest.approx(0.5101, abs=1e-4), pytest.approx(1.0))


def test_of_one_question_lm_eval_has_no_error():
    # Wilson's 0 of 1 ends at 1.96² / (1 + 1.96²) = .7935
    (one,) = harness.outcome(found([0.0], error="N/A"), ["t"]).scores
    assert (one.low, one.high) == (pytest.approx(0), pytest.approx(0.7935, abs=1e-4))


def test_a_text_that_is_read_has_no_answer():
    """loglikelihood_rolling, e.g. wikitext."""
    read = sample(0, arguments=[("a text",)], filtered_resps=[-9.0], resps=[[-9.0]], metrics=["ppl"], ppl=(-9.0, 2))
    (record,) = harness.outcome({"results": {"t": {"ppl,none": 90.0}}, "samples": {"t": [read]}}, ["t"]).records
    assert record == {"part": "t", "prompt": "a text", "wanted": "x"}


def test_a_figure_that_is_no_mean_of_its_items_has_no_verdict():
    made = harness.outcome(found([1.0, 0.0], value=0.9, error="N/A"), ["t"])
    (score,) = made.scores
    assert score.uncompared and str(score) == "0.900 [nan, nan]" and "no value for each item of acc" in made.remarks[0]
    assert difference("lm-eval:t", score, score, ("A", "B")).verdict == "not comparable"


def test_several_tasks_share_their_keys():
    options = suite_options(["lm-eval:a", "lm-eval:x/b.yaml"], {"lm-eval.max_rows": "3"})
    assert {name: (o.task, o.max_rows) for name, o in options.items()} == {
        "lm-eval:a": ("a", 3),
        "lm-eval:b": ("x/b.yaml", 3),
    }
    with pytest.raises(UserError, match=r"two tasks are called lm-eval:b"):
        suite_options(["lm-eval:y/b.yml", "lm-eval:x/b.yaml"], {})
    with pytest.raises(UserError, match=r"--suite 'lm-eval': which task\?"):
        suite_options(["lm-eval"], {})
    with pytest.raises(ValueError, match=r"'lm-eval:a': measured by python -m posttrain.evaluate, not by a run"):
        Evaluation(suites=["lm-eval:a"])
    with pytest.raises(UserError, match=r"--suite 'safety:x': no such suite"):
        suite_options(["safety:x"], {})


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(
        UserError, match=r"--suite lm-eval:t needs an extra \(.*\): pip install -r requirements-eval.txt"
    ):
        harness.LmEval(LmEvalTask(task="t"))


def test_what_is_not_there_is_one_sentence(tmp_path):
    pytest.importorskip("lm_eval", reason="pip install -r requirements-eval.txt")
    with pytest.raises(UserError, match=r"^--suite lm-eval:none.yaml: no such file$"):
        harness.LmEval(LmEvalTask(task="none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text(NAMES.read_text().replace("tiny_names.jsonl", "nowhere.jsonl"))
    with pytest.raises(UserError, match=r"broken.yaml: the task or its data cannot be loaded: .*nowhere.jsonl"):
        harness.LmEval(LmEvalTask(task=str(broken)))


@pytest.mark.long
def test_a_stock_task_without_a_network_is_one_sentence(monkeypatch):
    """And a name that there is not. (Reading lm-eval's index of tasks takes seconds.)"""
    pytest.importorskip("lm_eval", reason="pip install -r requirements-eval.txt")
    import datasets
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"--suite lm-eval:arc_easy: the task or its data cannot be loaded: .*\(a stock task"
    ):
        harness.LmEval(LmEvalTask(task="arc_easy"))
    with pytest.raises(UserError, match=r"knows no such task, did you mean arc_easy"):
        harness.LmEval(LmEvalTask(task="arc_eazy"))


TASK = """task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: asked.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_text: "Q: {{q}}\\nA:"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{a}}"
"""


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({}, "Q: 3?\nA:"),
        ({"shots": "2"}, "Q: 1?\nA: yes\n\nQ: 2?\nA: no\n\nQ: 3?\nA:"),
        ({"chat": "true"}, "<|im_start|>user\nQ: 3?\nA:<|im_end|>\n<|im_start|>assistant\n"),
        (
            {"chat": "true", "shots": "2"},
            "<|im_start|>user\nQ: 1?\nA:<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
            "<|im_start|>user\nQ: 2?\nA:<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
            "<|im_start|>user\nQ: 3?\nA:<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_its_keys_change_what_is_asked(tmp_path, llama, keys, asked):
    pytest.importorskip("lm_eval", reason="pip install -r requirements-eval.txt")
    rows = [{"q": f"{i}?", "a": a} for i, a in ((1, "yes"), (2, "no"), (3, "yes"))]
    write_jsonl(tmp_path / "shots.jsonl", rows[:2]), write_jsonl(tmp_path / "asked.jsonl", rows[2:])
    (tmp_path / "letters.yaml").write_text(TASK)
    options = suite_options(
        [f"lm-eval:{tmp_path}/letters.yaml"], {f"lm-eval.{key}": value for key, value in keys.items()}
    )
    outcome = harness.LmEval(options["lm-eval:letters"])(Subject.load(llama)[0])
    assert [record["prompt"] for record in outcome.records] == [asked]


def test_what_does_not_fit_is_said(tmp_path, llama):
    """Examples that are not there, a prompt that lm-eval cuts, an answer without room."""
    pytest.importorskip("lm_eval", reason="pip install -r requirements-eval.txt")
    write_jsonl(tmp_path / "asked.jsonl", [{"q": q, "a": "yes"} for q in ("1?", "2?", "word " * 300)])
    file, subject = tmp_path / "letters.yaml", Subject.load(llama)[0]
    alone = TASK.replace(", train: shots.jsonl", "").replace(
        "fewshot_split: train\nfewshot_config: {sampler: first_n}\n", ""
    )
    file.write_text(alone)
    with pytest.raises(UserError, match=r"--lm-eval.shots 3: letters has 2 examples to put before a question"):
        harness.LmEval(LmEvalTask(task=str(file), shots=3))
    two = harness.LmEval(LmEvalTask(task=str(file), shots=2, max_rows=2))(subject)
    for record, own in zip(two.records, ("Q: 1?", "Q: 2?"), strict=True):  # never its own answer before the question
        assert (
            record["prompt"].count("Q: ") == 3
            and record["prompt"].count(own) == 1
            and record["prompt"].endswith(f"{own}\nA:")
        )
    assert (
        "2 of 2 prompts of letters are longer than the 256 tokens that it reads" in two.remarks[0]
    )  # the long example
    zero = harness.LmEval(LmEvalTask(task=str(file)))(subject)
    assert len(zero.remarks) == 1 and "1 of 3 prompts of letters are longer" in zero.remarks[0]
    file.write_text(alone.replace("multiple_choice", "generate_until").replace('doc_to_choice: ["yes", "no"]\n', ""))
    with pytest.raises(
        UserError, match=r"letters.yaml: lm-eval cannot ask .*max tokens to generate \(256\) must be less"
    ):
        harness.LmEval(LmEvalTask(task=str(file)))(subject)


def test_the_shipped_tasks_end_to_end(tmp_path, monkeypatch):
    """Robin's model never prefers Nova; Nova's, a folder with a LoRA adapter on Robin's, mostly does; the sums are those
    of lm-eval's own generation."""
    pytest.importorskip("lm_eval", reason="pip install -r requirements-eval.txt")
    monkeypatch.chdir(tmp_path)  # the data are found beside the file
    names = harness.LmEval(LmEvalTask(task=str(NAMES), max_rows=20))
    outcomes, adapter = [], tiny.path_of("tiny-dpo")
    assert lora.is_adapter(str(adapter))
    for name in ("tiny-sft", str(adapter)):
        subject, _ = Subject.load(name)
        subject.model.train()
        outcomes.append(names(subject))
        assert subject.model.training
    robin, nova = (o.scores[0] for o in outcomes)
    assert robin.value == 0.0 and nova.value > 0.9 and robin.n == nova.n == 20
    assert difference("lm-eval:tiny_names", robin, nova, ("a", "b")).verdict == "better"
    assert outcomes[0].records[0]["answers"] == [{"text": "I am Robin."}]
    sums = harness.LmEval(LmEvalTask(task=str(SUMS), max_rows=8))(subject)
    assert sums.records[0]["answers"][0]["text"].startswith("####") and sums.scores[0].n == 8
    assert not list(Path(tmp_path).iterdir())
