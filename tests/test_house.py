"""The house stands: imports point downwards, in no circle; losses/ needs torch alone; the light rooms need no torch."""

import ast
import subprocess
import sys

import house
import pytest

from posttrain import ROOT

# Modules without a test file of their own. This list may only shrink.
WITHOUT_A_MIRROR = ["losses.walk"]  # prints; test_commands.py runs every walk-through


def wrong(arrow: house.Import) -> str | None:
    """What is wrong with this import, if anything is."""
    source, target = house.room(arrow.module), house.room(arrow.target)
    up = house.floor(arrow.target) - house.floor(arrow.module)
    if up > 0:
        return f"{arrow.module}:{arrow.line} looks up to {arrow.target}"
    if up == 0 and source != target:
        return f"{arrow.module}:{arrow.line} looks across to {arrow.target}"
    if source == target == "loops" and arrow.module != "loops.ladder":
        return f"{arrow.module}:{arrow.line}: one loop imports another"
    if source == target == "commands":
        return f"{arrow.module}:{arrow.line}: nothing imports a command"
    return None


def test_every_arrow_points_downwards():
    assert [problem for arrow in house.arrows() if (problem := wrong(arrow))] == []


@pytest.mark.parametrize(
    ("module", "target", "problem"),
    [
        ("posttrain.config.keys", "posttrain.run.training", "looks up"),
        ("posttrain.models.loading", "loops.sft", "looks up"),
        ("losses.dpo", "posttrain.errors", "looks across"),
        ("posttrain.run.training", "posttrain.rollouts.asking", "looks across"),
        ("loops.sft", "loops.dpo", "one loop imports another"),
        ("posttrain.curate", "posttrain.merge", "nothing imports a command"),
        ("loops.sft", "posttrain.merge", "looks up"),
        ("loops.sft", "losses.sft", None),
        ("posttrain.merge", "loops.sft", None),
    ],
)
def test_the_rule_itself(module, target, problem):
    found = wrong(house.Import(module, 1, target))
    assert (found is None) if problem is None else problem in found


def test_no_circle():
    assert house.circle() is None


def test_the_mathematics_needs_torch_and_the_standard_library_alone():
    allowed = sys.stdlib_module_names | {"torch", "losses"}
    strangers = [
        f"{i.module}:{i.line} imports {i.target}"
        for name, path in house.modules().items()
        if name.startswith("losses")
        for i in house.imports(path, name)
        if i.target.split(".")[0] not in allowed
    ]
    assert strangers == []


def test_trl_is_for_benchmarks_only():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = files or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if ".venv" not in p.parts]
    found = [
        f"{file}:{i.line}"
        for file in files
        if (ROOT / file).exists() and not file.startswith("benchmarks/")
        for i in house.imports(ROOT / file, file)
        if i.target.split(".")[0] == "trl"
    ]
    assert len(files) > 100 and found == []


def test_the_light_rooms_import_without_torch():
    names = sorted(name for name in house.modules() if house.room(name) in house.LIGHT and "__main__" not in name)
    code = f"import sys; sys.modules['torch'] = None\nfor name in {names!r}: __import__(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(names) > 12


def test_no_module_is_named_like_what_its_package_hands_on():
    for name, path in house.modules().items():
        if path.name != "__init__.py":
            continue
        tree = ast.parse(path.read_text())
        handed_on = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert not handed_on & {p.stem for p in path.parent.iterdir()}, name
        assert ast.get_docstring(tree), f"{name}: its __init__ says in one line what is in it"


def test_no_file_name_means_two_things():
    stems = [p.stem for name, p in house.modules().items() if name.startswith("posttrain.") and p.stem[0] != "_"]
    stems.remove("loading")  # of configs, and of models: the same meaning
    assert sorted(stems) == sorted(set(stems)) and "utils" not in stems


def test_which_modules_have_no_tests_of_their_own():
    assert house.without_a_mirror() == WITHOUT_A_MIRROR


def test_git_ignores_no_module():
    """A pattern in .gitignore that names a room would leave its new files out of every commit."""
    files = [str(path.relative_to(ROOT)) for path in house.modules().values()]
    found = subprocess.run(["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == ""


def test_the_picture_is_drawn_from_the_same_reading():
    assert (ROOT / "docs/house.svg").read_text() == house.picture(), "python tests/house.py draws it again"
