"""What `pip install .` installs: every package, the configs that the embedded models are built from, and no developer's tools."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import house
import pytest

from posttrain import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[=<>;\[ ]", requirement)[0].lower()


def test_a_user_gets_ranges_and_no_tools():
    names = {name_of(line) for line in PROJECT["dependencies"]}
    assert not names & {"pytest", "pytest-xdist", "ruff", "mypy", "trl"}
    assert not any("==" in line for line in PROJECT["dependencies"])


def test_what_the_tests_have_run_with_lies_in_the_ranges():
    from packaging.requirements import Requirement

    files = sorted(ROOT.glob("requirements*.txt"))
    pins = [line.split("#")[0].strip() for file in files for line in file.read_text().splitlines()]
    pinned = dict(pin.split("==") for pin in pins if pin)
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for line in [*PROJECT["dependencies"], *extras]:
        wanted = Requirement(line)
        if wanted.name != "pre-commit":
            assert wanted.specifier.contains(pinned[wanted.name]), line


@pytest.mark.long
def test_the_wheel_holds_every_module_and_runs_from_elsewhere(tmp_path):
    left_out = shutil.ignore_patterns(".venv", ".git", "outputs", "build", "*.egg-info", "__pycache__", ".*_cache")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out)  # building leaves folders beside the sources
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    modules = {str(path.relative_to(ROOT)) for path in house.modules().values()}
    assert modules <= inside and not any(name.startswith(("tests", "benchmarks", "notebooks")) for name in inside)
    assert {
        "configs/sft_tiny.yaml",
        "configs/accelerate/fsdp2.yaml",
        "losses/py.typed",
        "posttrain/data/principles.txt",
        "posttrain/exercises/curves.json",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "posttrain/serving/static").iterdir()),
    } <= inside
    code = (
        "import losses.dpo, posttrain; from posttrain.config import load; from posttrain.tiny import names\n"
        "from loops import pretrain\n"
        "load(posttrain.ROOT / 'configs/sft_tiny.yaml'); print(names.fingerprint('tiny-dpo'), posttrain.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and str(tmp_path / "installed") in ran.stdout, ran.stderr
