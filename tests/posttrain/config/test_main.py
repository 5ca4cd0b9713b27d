"""python -m posttrain.config: every template runs as it is, problems are all told, and each value says where it comes from."""

import subprocess
import sys
import time

import pytest
import yaml

from posttrain import ROOT
from posttrain.config import __main__, load
from posttrain.config.keys import Training
from posttrain.config.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_template_is_a_whole_config(tmp_path, capsys, method):
    __main__.main(["template", method])
    text = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(text)
    config = load(tmp_path / "mine.yaml")
    assert config.method == method
    if method == "ladder":
        assert config.ladder.best_of_k.overrides == {"training.learning_rate": 1e-3}
    elif method == "real":
        assert config.real.task["max_terms"] == 4 and config.real.grpo.config == "grpo.yaml"
    else:
        assert config.training.learning_rate == Training().learning_rate == 2e-5
        assert "# peak learning rate [float]\n  learning_rate: 2.0e-05" in text
        assert set(yaml.safe_load(text)) == set(type(config).model_fields) - {"resume"}


def test_show_says_where_each_value_comes_from(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("model:\n  name: tiny-sft\ndata:\n  name: tiny-identity\ndpo:\n  beta: 0.2\n")
    __main__.main(["show", str(file), "--learning-rate", "1e-4", "--dpo.sft_weight", "1"])
    lines = {line.split(":")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["beta"].split("#")[1].strip() == f"{file}, line 6" and "0.2" in lines["beta"]
    assert lines["learning_rate"].split("#")[1].strip() == "command line" and "0.0001" in lines["learning_rate"]
    assert lines["batch_size"].split("#")[1].strip() == "default" and "16" in lines["batch_size"]
    assert lines["sft_weight"].split("#")[1].strip() == "command line"


def test_validate_tells_all_problems_of_all_files(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("model:\n  name: x\nsft: {}\ntraining:\n  learnig_rate: 1\n  epochs: 0\n")
    (tmp_path / "b.yaml").write_text("model:\n  name: x\ndata:\n  name: y\ngrpo: {}\n")
    (tmp_path / "c.yaml").write_text("model: [\n")
    with pytest.raises(SystemExit, match="error: 2 of 3 files have problems"):
        __main__.main(["validate", str(tmp_path)])
    out = capsys.readouterr().out
    assert (
        "2 problems" in out and "line 5: unknown key 'learnig_rate' in training, did you mean 'learning_rate'?" in out
    )
    assert "line 6: training.epochs: input should be greater than or equal to 1" in out
    assert "b.yaml: fine, a config for loops.grpo" in out and "c.yaml, line" in out and "not valid YAML" in out


def test_list(capsys):
    __main__.main(["list", str(ROOT / "configs")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(len(list((ROOT / folder).glob("*.yaml"))) for folder in ("configs", "configs/variants"))
    assert any("variants/cdpo_tiny.yaml" in line and "tiny-sft" in line and "Mitchell 2023" in line for line in lines)
    assert any("ppo_tiny.yaml" in line and "tiny-sft" in line and "PPO on the embedded model" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "invalid choice: 'nope'"),
        ([], "required: {template,validate,show,list}"),
        (["template", "orpo"], "invalid choice: 'orpo' (choose from"),
        (["validate"], "the following arguments are required: FILE"),
        (["list", "configs", "--deep"], "unrecognized arguments: --deep"),
        (["show", "none.yaml"], "none.yaml: no such file"),
        (["show", "configs/dpo_tiny.yaml", "--config", "configs/sft_tiny.yaml"], "show takes one file"),
        (["list", "losses"], "no .yaml file in losses"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(arguments)
    assert stopped.value.code != 0 and message in f"{stopped.value}{capsys.readouterr().err}"


def test_it_is_there_in_under_a_second_and_without_torch():
    code = "import sys; from posttrain.config.__main__ import main; main(['show', 'configs/ppo_tiny.yaml']); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 5  # 0.2 s; a busy machine may be slow, but torch alone would be seen above
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.config", "show", "configs/dpo_tiny.yaml", "--dpo.bta", "1"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "did you mean 'beta'?" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_no_line_of_the_list():
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["list", "configs", "nope"])
    assert stopped.value.code == "error: nope: no such file"
