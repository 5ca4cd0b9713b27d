"""The suites' keys on the command line: what they mean, and what is refused."""

import pytest

from posttrain.config.command_line import suite_options
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
        (["identity"], {"name": "A", "samples": "3"}, r"samples = 3 at temperature 0"),
        (["perplexity", "drift"], {"max_rows": "3", "perplexity.data": "x", "drift.base": "y"}, r"'max_rows' could be perplexity.max_rows or drift.max_rows"),
    ],
)  # fmt: skip
def test_what_is_refused(names, given, problem):
    with pytest.raises(UserError, match=problem):
        suite_options(names, given)
