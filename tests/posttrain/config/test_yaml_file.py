"""extends: a file upon another: what is taken, what is replaced, and where a message says a value stands."""

import pytest

from posttrain import ROOT
from posttrain.config import load
from posttrain.config.loading import resolve
from posttrain.config.yaml_file import read_yaml
from posttrain.errors import UserError

BASE = "model:\n  name: x\n  lora:\n    rank: 4\ndata:\n  name: [a, b]\n  chat_template_kwargs: {size: 3}\ndpo:\n  beta: 0.3\n  sft_weight: 1.0\n"


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_groups_are_merged_and_values_and_lists_replaced(tmp_path):
    write(tmp_path, base=BASE)
    over = "# a comment\nextends: ../base.yaml\nmodel:\n  lora:\n    alpha: 8\ndata:\n  name: [c]\ndpo:\n  beta: 0.5\n"
    path = write(tmp_path / "variants", mine=over) / "mine.yaml"
    values, places = read_yaml(path)
    assert values == {
        "model": {"name": "x", "lora": {"rank": 4, "alpha": 8}},
        "data": {"name": ["c"], "chat_template_kwargs": {"size": 3}},
        "dpo": {"beta": 0.5, "sft_weight": 1.0},
    }
    assert places["dpo.beta"] == f"{path}, line 9" and places["dpo.sft_weight"] == f"{tmp_path}/base.yaml, line 10"
    assert load(tmp_path / "base.yaml").dpo.beta == 0.3  # of itself


def test_an_empty_group_changes_nothing_and_null_is_a_value(tmp_path):
    path = write(tmp_path, base=BASE, mine="extends: base.yaml\ndpo:\nmodel:\n  lora:\ndata:\n  name: null\n")
    values, _ = read_yaml(path / "mine.yaml")
    assert values["dpo"] == {"beta": 0.3, "sft_weight": 1.0} and values["model"]["lora"] == {"rank": 4}
    assert values["data"] == {"name": None, "chat_template_kwargs": {"size": 3}}


def test_the_group_of_another_method_stays_behind(tmp_path):
    path = write(tmp_path, base=BASE, mine="extends: base.yaml\nsft:\n") / "mine.yaml"
    config, places = resolve(path)
    assert config.method == "sft" and not any(key.startswith("dpo") for key in places)
    assert config.output.dir == "outputs/mine"


def test_over_two_files(tmp_path):
    path = write(
        tmp_path, base=BASE, a="extends: base.yaml\ndpo:\n  beta: 0.4\n", b="extends: a.yaml\ndpo:\n  sft_weight: 0\n"
    )
    assert read_yaml(path / "b.yaml")[0]["dpo"] == {"beta": 0.4, "sft_weight": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nope.yaml\n", "mine.yaml, line 1: extends nope.yaml: {0}/nope.yaml: no such file"),
        ("extends: mine.yaml\n", "mine.yaml, line 1: {0}/mine.yaml extends {0}/mine.yaml: a circle"),
        ("extends: other.yaml\n", "other.yaml, line 1: {0}/mine.yaml extends {0}/other.yaml extends {0}/mine.yaml: a circle"),
        ("extends: [a.yaml, b.yaml]\n", "line 1: extends takes one file, relative to this one, got ['a.yaml', 'b.yaml']"),
        ("extends:\n", "line 1: extends takes one file, relative to this one, got None"),
        ("dpo:\n  extends: base.yaml\nmodel: {name: x}\n", "line 2: unknown key 'extends' in dpo"),
        ("extends: base.yaml\ndpo:\n  bta: 1\n", "mine.yaml, line 3: unknown key 'bta' in dpo, did you mean 'beta'?"),
        ("extends: bad.yaml\n", "bad.yaml, line 2: unknown key 'naem' in model"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, text, message):
    write(tmp_path, base=BASE, mine=text, other="extends: mine.yaml\n", bad="model:\n  naem: x\ndpo: {}\n")
    with pytest.raises(UserError) as told:
        load(tmp_path / "mine.yaml")
    assert message.format(tmp_path) in str(told.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/variants").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_is_a_few_lines_on_a_base_and_names_its_paper(path):
    """`python -m posttrain.config list` shows the first line."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and any(word in lines[0] for word in ("arXiv", "Mitchell 2023", "Machines 2025"))
    config = load(path)
    assert lines[1] == f"#   python -m loops.{config.method} --config configs/variants/{path.name}"
    assert lines[2].startswith("extends: ") and lines[2].endswith("_tiny.yaml") and len(lines) <= 24
