"""Distillation: from a teacher with the same tokens, on given answers and on the student's own."""

from functools import partial

import pytest
from kit import bytelevel_tokenizer, metric, run_loop, small_config, tiny_folder, write_jsonl

from loops import distill
from posttrain import ROOT
from posttrain.errors import UserError

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}." + " Yes." * (i % 3)} for i in range(1, 6)]
GIVEN = {"distill__on_policy": 0, "distill__max_new_tokens": None}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("teacher"), seed=3, num_hidden_layers=1)


@pytest.fixture
def run(teacher):
    return partial(run_loop, distill, rows=ROWS, distill__teacher=teacher)


@pytest.mark.parametrize("mixture", [0, 0.5, 1])
def test_the_divergence_falls(tmp_path, llama, run, mixture):
    result = run(llama, tmp_path, **GIVEN, distill__mixture=mixture, training__epochs=6, training__learning_rate=3e-3)
    assert metric(result, "divergence")[-1] < 0.8 * metric(result, "divergence")[0]
    assert metric(result, "divergence")[0] == pytest.approx(metric(result, "loss")[0], abs=1e-5)


@pytest.mark.parametrize("on_policy", [0, 0.5, 1])
def test_it_does_not_depend_on_how_a_step_is_cut(tmp_path, llama, run, on_policy):
    how = GIVEN if on_policy == 0 else {"distill__on_policy": on_policy}
    whole, apart = (run(llama, tmp_path, **how, training__micro_batch_size=m) for m in (4, 1))
    for a, b in zip(whole.metrics, apart.metrics, strict=True):
        for name in {"loss", "grad_norm", "completion_length", "finished"} & set(a):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name
    assert ("completion_length" in whole.metrics[0]) == (on_policy > 0)
    assert whole.metrics[0].get("completion_length", 0) <= 6


def test_a_teacher_that_is_the_student_has_nothing_to_teach(tmp_path, llama):
    result = run_loop(distill, llama, tmp_path, rows=ROWS, distill__teacher=llama, **GIVEN)
    assert metric(result, "loss")[0] == pytest.approx(0, abs=1e-6) and metric(result, "grad_norm")[0] < 1e-4


def test_lora_and_validation(tmp_path, llama, run):
    more = {"model__adapter": "lora", "data__validation_split": 0.4, "training__eval_every": 1, "distill__on_policy": 1}
    result = run(llama, tmp_path, **more)
    assert all(row["validation_loss"] > 0 for row in result.metrics)


def test_another_vocabulary_is_refused_with_the_reason(tmp_path, llama):
    tokenizer = bytelevel_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    other = tiny_folder(tmp_path / "other", tokenizer=tokenizer)
    with pytest.raises(
        UserError, match=r"another vocabulary than the student .* compared are probabilities of the same tokens"
    ):
        run_loop(distill, llama, tmp_path, rows=ROWS, distill__teacher=other)


def test_sampling_wants_room_and_keys_that_belong_to_it(tmp_path, llama, run):
    with pytest.raises(UserError, match=r"leaves no prompt room in data.max_length = 100"):
        run(llama, tmp_path, data__max_length=100, distill__max_new_tokens=99)
    with pytest.raises(UserError, match=r"distill.max_new_tokens belongs to distill.on_policy"):
        small_config("distill", llama, tmp_path, distill__on_policy=0)
    with pytest.raises(UserError, match="these rows are plain text"):
        run(llama, tmp_path, rows=[{"text": "some text that is learned whole"}] * 4)


def test_bf16(tmp_path, llama, run):
    for adapter in ("none", "lora"):
        more = {"model__dtype": "bfloat16", "model__adapter": adapter, "output__samples": 2}
        result = run(llama, tmp_path, **more, training__epochs=3)
        assert all(0 < value < 20 for value in metric(result, "divergence"))
    same = run_loop(distill, llama, tmp_path, rows=ROWS, distill__teacher=llama, model__dtype="bfloat16", **GIVEN)
    assert metric(same, "loss")[0] == pytest.approx(
        0, abs=1e-3
    )  # weights in bf16 against weights rounded to it on the way


# ---------------------------------------------------------------- prompts that come without answers

PROMPTS = [{"prompt": row["prompt"], "answer": row["completion"]} for row in ROWS]  # as for loops.grpo
ALL_OWN = {"distill__on_policy": 1}


def test_prompts_alone_give_what_the_same_prompts_with_answers_give(tmp_path, llama, run, capfd):
    with_answers, alone = (run(llama, tmp_path, rows=rows, **ALL_OWN, output__samples=2) for rows in (ROWS, PROMPTS))
    for name in ("loss", "grad_norm", "completion_length", "finished"):
        assert metric(alone, name) == pytest.approx(metric(with_answers, name), rel=1e-4, abs=1e-5), name
    said = capfd.readouterr().err
    assert (
        "read 5 rows as prompts from rows (columns not used: answer)" in said
        and "What is 1 + 1?" in (alone.folder / "samples.md").read_text()
    )


def test_prompts_alone_in_a_stream_and_beside_longer_ones(tmp_path, llama, run, capfd):
    stream = {"data__name": str(ROOT / "tests/data/prompts.jsonl"), "data__streaming": True, "training__max_steps": 3}
    result = run(llama, tmp_path, rows=None, **ALL_OWN, **stream)
    assert len(result.metrics) == 3 and all(length > 0 for length in metric(result, "completion_length"))
    long = [*PROMPTS, {"prompt": "word " * 120}]
    run(llama, tmp_path, rows=long, **ALL_OWN, data__max_length=100)
    assert "dropped 1 (16.7%): " in capfd.readouterr().err


def test_where_an_answer_is_needed_prompts_alone_are_refused(tmp_path, llama, run):
    with pytest.raises(UserError, match=r"rows, row 1: expected the columns .*; found prompt, answer"):
        run(llama, tmp_path, rows=PROMPTS, distill__on_policy=0.9)
    held_out = {"data__validation_split": 0.4, "training__eval_every": 1}
    with pytest.raises(UserError, match=r"data.validation_split: the divergence is measured on given answers"):
        run(llama, tmp_path, rows=PROMPTS, **ALL_OWN, **held_out)
    names = [write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", PROMPTS[:2])]
    with pytest.raises(UserError, match="2 of 7 rows are prompts without an answer"):
        run(llama, tmp_path, rows=None, data__name=names, **ALL_OWN)


def test_answers_that_are_judged_bad_are_no_prompts(tmp_path, llama, run):
    rows = [row | {"label": False} for row in ROWS]
    with pytest.raises(UserError, match=r"'label' is False: a bad answer"):
        run(llama, tmp_path, rows=rows, **ALL_OWN)
