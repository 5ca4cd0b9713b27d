"""Suites and models brought together; what is wrong is said before anything is measured."""

import pytest
from kit import tiny_folder

from posttrain.config import suites as keys
from posttrain.config.command_line import suite_options
from posttrain.errors import UserError
from posttrain.evaluation import measuring
from posttrain.evaluation.scores import Outcome, proportion
from posttrain.evaluation.subjects import Subject


def options(**more):
    return suite_options(["safety", "drift"], {"safety.max_rows": "2", "safety.max_new_tokens": "4", "drift.max_rows": "2", "drift.samples": "1", "drift.max_new_tokens": "4"} | more)  # fmt: skip


def test_every_suite_has_its_keys_and_its_class():
    assert list(measuring.SUITES) == list(keys.SUITES)


def test_the_results_come_model_by_model(tmp_path, llama):
    other = tiny_folder(tmp_path / "other", seed=1)
    steps = [[m.name for m in found.models] for found in measuring.evaluate([llama, other], options(**{"drift.base": llama}), device="cpu")]  # fmt: skip
    assert steps == [[llama], [llama, other]]
    *_, found = measuring.evaluate([llama, other], options(**{"drift.base": llama}), device="cpu", seed=3)
    assert found.about["settings"] == {"device": "cpu", "dtype": "float32", "batch_size": 8, "seed": 3}
    assert found.options["drift"]["base"] == llama and found.about["torch"].startswith("2.")
    mine, theirs = (m.outcomes["drift"].scores[0].value for m in found.models)
    assert mine == pytest.approx(0, abs=1e-9) and theirs > 0.1
    assert found.models[0].about["fingerprint"] != found.models[1].about["fingerprint"]
    assert {d.score for d in found.differences()} == {"refused_harmful", "refused_harmless", "kl", "top1"}


def test_a_loaded_model_is_measured_without_a_name(llama):
    """What a run will do with its own model."""

    class Mine:
        def __call__(self, subject):
            (answer,), *_ = subject.ask(["Hi"], max_new_tokens=3)
            return Outcome([proportion("short", "", [answer.tokens <= 3], "p")], [{"part": "p", "prompt": "Hi"}])

    loaded, _ = Subject.load(llama)
    loaded.model.train()
    found = measuring.measure(Subject("step 3", loaded.model, loaded.tokenizer), {"mine": Mine()})
    assert found.name == "step 3" and found.outcomes["mine"].scores[0].value == 1.0 and loaded.model.training


@pytest.mark.parametrize(
    ("names", "more", "problem"),
    [
        (["llama", "./nowhere"], {"drift.base": "x"}, r"--model './nowhere': cannot be loaded: no such folder"),
        (["llama", "llama"], {"drift.base": "x"}, "names a model twice"),
        (["llama"], {"drift.base": "x", "drift.data": "none.jsonl"}, "no such data file"),
    ],
)
def test_what_is_wrong_is_said_before_any_model_is_measured(llama, monkeypatch, names, more, problem):
    monkeypatch.setattr(Subject, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UserError, match=problem):
        next(measuring.evaluate([llama if name == "llama" else name for name in names], options(**more), device="cpu"))
