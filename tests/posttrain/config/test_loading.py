import re

import pytest
import yaml

from posttrain import ROOT
from posttrain.config.loading import load, save
from posttrain.errors import UserError


def write(tmp_path, text, name="run.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


GOOD = "model:\n  name: tiny-sft\ndata:\n  name: tiny-identity\ndpo:\n  beta: 0.2\n"


def problems(path, overrides=None, method=None):
    with pytest.raises(UserError) as error:
        load(path, overrides, method=method)
    return str(error.value)


def test_values_defaults_and_overrides(tmp_path):
    config = load(write(tmp_path, GOOD), overrides={"training.seed": 7, "learning-rate": "1e-4"})
    assert (config.dpo.beta, config.training.seed, config.training.learning_rate) == (0.2, 7, 1e-4)
    assert config.training.max_grad_norm == 1.0 and config.method == "dpo"
    assert config.output.dir == "outputs/run"


def test_every_shipped_config_is_valid_and_reads_back(tmp_path):
    shipped = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/variants").glob("*.yaml")])
    assert {p.stem for p in shipped} >= {"sft_tiny", "dpo_tiny", "grpo_tiny", "ladder_tiny"}
    for path in shipped:
        config = load(path)
        save(config, tmp_path / "resolved.yaml")
        assert load(tmp_path / "resolved.yaml") == config


def test_yaml_1_1_reads_1e_3_as_text_and_it_is_a_number_all_the_same(tmp_path):
    text = GOOD + "training:\n  learning_rate: 1e-3\n"
    assert yaml.safe_load(text)["training"]["learning_rate"] == "1e-3"
    assert load(write(tmp_path, text)).training.learning_rate == 0.001


def test_all_problems_at_once_with_place_key_expectation_and_suggestion(tmp_path):
    path = write(
        tmp_path,
        "model:\n  name: x\n  dtype: float8\ntraining:\n  learnig_rate: 1e-4\n  epochs: 2.5\n  max_grad_norm: 0\ndpo: {}\n",
    )
    text = problems(path, {"dpo.beta": -1})
    assert text.startswith("5 problems")
    assert f"{path}, line 5: unknown key 'learnig_rate' in training, did you mean 'learning_rate'?" in text
    assert f"{path}, line 3: model.dtype: input should be 'auto', 'float32' or 'bfloat16', got 'float8'" in text
    assert f"{path}, line 6: training.epochs: input should be a valid integer" in text and "got 2.5" in text
    assert f"{path}, line 7: training.max_grad_norm: input should be greater than 0, got 0" in text
    assert "overrides: dpo.beta: input should be greater than 0, got -1" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpo:\n  top_p: 0.9\n", "'top_p' is refused in RL"),
        ("grpo: {}\nmodell:\n  name: x\n", "unknown key 'modell', did you mean 'model'?"),
        ("grpo: {}\nlearning_rate: 1\n", "did you mean 'training.learning_rate'?"),
        ("grpo:\n  beta: nan\n", "unknown key 'beta' in grpo"),
    ],
)
def test_refusals(tmp_path, text, expected):
    assert expected in problems(write(tmp_path, "model: {name: x}\n" + text))


def test_files_that_cannot_be_read(tmp_path):
    assert f"no such file, did you mean {ROOT}/configs/sft_tiny.yaml" in problems(ROOT / "configs" / "sft_tinny.yaml")
    assert re.search(r"no such file; \d+ .yaml files are there$", problems(ROOT / "configs" / "1234567890.yml"))
    assert problems(ROOT / "no_such_folder" / "nope.yaml").endswith("no such file")
    dotted = write(tmp_path, "training.max_steps: 1\ntraining:\n  training.seed: 3\nsft: {}\n")
    assert "line 1: 'training.max_steps' is no key of a file: write max_steps below training:" in problems(dotted)
    assert "line 3: 'training.seed' is no key of a file: write seed below training:" in problems(dotted)
    assert "'model.name' is given twice (first on line 2)" in problems(
        write(tmp_path, "model:\n  name: a\n  name: b\n")
    )
    assert "expected groups" in problems(write(tmp_path, "- 1\n- 2\n"))
    assert "cannot tell the method" in problems(write(tmp_path, "model: {name: x}\n"))
    assert "this is a config for loops.dpo, not for loops.sft" in problems(write(tmp_path, GOOD), method="sft")


def test_broken_yaml_names_its_line(tmp_path):
    text = problems(write(tmp_path, "dpo:\n  beta: [1\nmodel: 3\n"))
    assert "not valid YAML" in text and ", line 3" in text


def test_missing_required_key_and_empty_groups(tmp_path):
    for text in ("dpo: {}\nmodel: {}\n", "dpo:\ntraining:\n", "dpo:\nmodel:\n  lora:\n"):
        assert "'model.name' is missing" in problems(write(tmp_path, text))
    assert load(write(tmp_path, "dpo:\ntraining:\nmodel: {name: x}\n")).dpo.beta == 0.1


def test_the_same_key_by_two_names_is_given_twice(tmp_path):
    assert "training.learning_rate is given twice" in problems(
        write(tmp_path, GOOD), {"learning-rate": 1, "training.learning_rate": 2}
    )


def test_a_group_as_an_override_is_merged(tmp_path):
    config = load(
        write(tmp_path, GOOD + "  sft_weight: 1.0\n"), {"dpo": {"label_smoothing": 0.1}, "output.dir": tmp_path}
    )
    assert (config.dpo.beta, config.dpo.sft_weight, config.dpo.label_smoothing) == (0.2, 1.0, 0.1)
    assert config.output.dir == str(tmp_path)


@pytest.mark.parametrize("text", ["dpo: !foo 1\n", "dpo: {beta: 2026-13-45}\n", "dpo: &a {b: *a}\n", "? [1]\n: 2\n"])
def test_yaml_oddities_are_one_sentence(tmp_path, text):
    assert problems(write(tmp_path, text), method="dpo")


def test_a_leaf_name_that_is_not_unique_wants_its_group(tmp_path):
    assert "could be model.name or data.name: give the group too" in problems(write(tmp_path, GOOD), {"name": "x"})


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    assert load(write(tmp_path, GOOD), {"model.name": 7, "data.name": 2024}).model.name == "7"


def test_a_bare_seed_is_the_trainings():
    config = load(ROOT / "configs" / "sft_tiny.yaml", {"seed": 3})
    assert (config.training.seed, config.data.seed) == (3, 0)
