"""The suites' keys on the command line: what they mean, and what is refused."""

import pytest
from kit import yaml_config

from posttrain.config import load
from posttrain.config.command_line import help_text, suite_options
from posttrain.config.loading import save
from posttrain.config.suites import SUITES, Evaluation
from posttrain.errors import UserError


def test_keys_are_those_of_the_chosen_suites_in_their_order():
    given = {"accuracy.data": "tiny-math", "identity.name": "Nova", "identity.old": "Robin", "accuracy.samples": "8"}
    found = suite_options(["identity", "accuracy"], given)
    assert list(found) == ["identity", "accuracy"]
    assert (
        found["identity"].old == ["Robin"]
        and found["accuracy"].samples == 8
        and found["accuracy"].max_new_tokens == 256
    )
    alone = suite_options(
        ["accuracy"], {"data": "tiny-math", "pass-at": "2", "samples": "4"}
    )  # a unique last part will do
    assert alone["accuracy"].data == "tiny-math" and alone["accuracy"].pass_at == 2
    assert suite_options(["identity"], {"name": "A", "old": ["B", "C"]})["identity"].old == ["B", "C"]
    task = {"data": "reasoning-gym:chain_sum", "accuracy.task.max_terms": "3"}
    assert suite_options(["accuracy"], task)["accuracy"].task == {"max_terms": 3}


@pytest.mark.parametrize(
    ("names", "given", "problem"),
    [
        (["acuracy"], {}, r"--suite 'acuracy': no such suite, did you mean 'accuracy'\?"),
        (["xyz"], {}, r"no such suite; there are accuracy, identity, perplexity, drift, safety"),
        (["accuracy"], {}, r"'accuracy.data' is missing: give it as --accuracy.data VALUE"),
        (["accuracy"], {"data": "x", "accuracy.smples": "8"}, r"unknown key 'smples' in accuracy, did you mean 'samples'\?"),
        (["safety"], {"accuracy.data": "x"}, r"--accuracy.data is given, but the suite is not asked for: add --suite accuracy"),
        (["safety"], {"safty.judge": "x"}, r"unknown key 'safty', did you mean 'safety'\?"),
        (["accuracy"], {"data": "x", "samples": "many"}, r"command line: accuracy.samples: .* got many"),
        (["accuracy"], {"data": "x", "pass_at": "4", "samples": "2"}, r"pass_at = 4 needs at least as many samples, got 2"),
        (["accuracy"], {"data": "x", "task": "{size: 3}"}, r"task belongs to data: reasoning-gym:TASK"),
        (["identity"], {"name": "A", "old": "A"}, r"the name 'A' is also among the old ones"),
        (["identity"], {"name": "A", "old": ""}, r"a name that is empty stands in every answer"),
        (["identity"], {"name": " "}, r"a name that is empty"),
        (["identity"], {"name": "A", "samples": "3"}, r"samples = 3 at temperature 0"),
        (["perplexity", "drift"], {"max_rows": "3", "perplexity.data": "x", "drift.base": "y"}, r"'max_rows' could be perplexity.max_rows or drift.max_rows"),
    ],
)  # fmt: skip
def test_what_is_refused(names, given, problem):
    with pytest.raises(UserError, match=problem):
        suite_options(names, given)


ASKED = {"evaluation.suites": ["accuracy", "safety"], "evaluation.every": "20", "evaluation.accuracy.data": "tiny-math"}


def test_a_run_has_the_same_keys_below_evaluation(tmp_path):
    config = yaml_config("sft_tiny", **ASKED, **{"evaluation.accuracy.max_rows": "50"})
    chosen = config.evaluation.chosen()
    assert list(chosen) == ["accuracy", "safety"] and chosen["accuracy"].max_rows == 50
    assert chosen["safety"].max_new_tokens == 96  # needs no key of its own
    assert config.evaluation.every == 20 and config.evaluation.identity is None
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml").evaluation == config.evaluation
    plain = yaml_config("sft_tiny")
    assert plain.evaluation == Evaluation() and plain.evaluation.chosen() == {}
    save(plain, tmp_path / "plain.yaml")
    assert load(tmp_path / "plain.yaml").evaluation == plain.evaluation


def test_every_suite_is_a_key_of_a_run_and_of_its_help():
    in_a_run = [name for name in Evaluation.model_fields if name in SUITES]
    assert list(SUITES) == [*in_a_run, "lm-eval"]  # which is asked by the command alone
    assert "--evaluation.accuracy.max_rows  [int | none]  default: None" in help_text("grpo")


def test_short_names_are_not_those_of_a_suite():
    config = yaml_config("sft_tiny", samples=2, max_length=90)
    assert config.output.samples == 2 and config.data.max_length == 90
    assert yaml_config("grpo_tiny", temperature=0.5).grpo.temperature == 0.5


@pytest.mark.parametrize(
    ("method", "given", "problem"),
    [
        ("sft", {"evaluation.suites": "acuracy"}, r"'acuracy': no such suite, did you mean 'accuracy'\?"),
        ("sft", {"evaluation.suites": "accuracy"}, r"'evaluation.accuracy.data' is missing"),
        ("sft", ASKED | {"evaluation.accuracy.smples": 8}, r"unknown key 'smples' in evaluation.accuracy, did you mean 'samples'\?"),
        ("sft", ASKED | {"evaluation.accuracy.pass_at": 4}, r"pass_at = 4 needs at least as many samples"),
        ("sft", {"evaluation.accuracy.data": "x"}, r"evaluation.accuracy has keys, but the suite is not asked for: put accuracy into evaluation.suites"),
        ("sft", {"evaluation.every": 5}, r"evaluation.every: there is nothing to measure"),
        ("sft", ASKED | {"evaluation.suites": ["accuracy", "accuracy"]}, r"suites names one twice"),
        ("reward", {"evaluation.suites": "safety"}, r"evaluation.suites: safety measures a model that writes, and loops.reward trains one that scores"),
        ("pretrain", {"evaluation.suites": "safety"}, r"evaluation.suites: safety asks through a chat template"),
    ],
)  # fmt: skip
def test_what_a_run_is_refused(method, given, problem):
    with pytest.raises(UserError, match=problem):
        yaml_config(f"{method}_tiny", **given)
