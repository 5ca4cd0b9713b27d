"""`--check` of a loss: its own tests, run on your function, and each property that fails in words.

The tests are those of tests/losses/. They run in a process of their own, in which your functions have taken the place
of the project's before any test is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from posttrain import ROOT
from posttrain.errors import UserError

# What a test is about, by a word in its name; else its name is the sentence.
PROPERTIES = {
    "pencil_gradient": "the gradient of the pencil example",
    "pencil": "the value of the pencil example",
    "split_invariance": "two micro-batches must add up to the whole batch: weigh and sum, take no mean",
    "micro_batches": "micro-batches must add up to the whole batch: weigh and sum, take no mean",
    "garbage": "what has weight 0 may hold NaN or infinity and must change nothing",
    "may_hold_anything": "what has weight 0 may hold NaN or infinity and must change nothing",
    "padding": "what is not active may hold NaN or infinity and must change nothing",
    "nothing": "where nothing counts, the loss is 0 (not NaN) and still has a gradient",
    "no_pair_counts": "where nothing counts, the loss is 0 (not NaN) and still has a gradient",
    "gradients_flow": "gradients reach the policy, and neither the reference nor the advantages nor the weights",
    "only_the_policy": "gradients reach the policy and nothing else",
    "purity": "no argument may be changed, the result is float32, and metrics carry no gradient",
    "equal_rewards": "a group whose answers all got the same reward teaches nothing: exactly 0",
    "two_groups": "one group must not see the rewards of another",
    "rows_do_not_mix": "one row must not see another",
    "equal_to_reference": "where policy and reference agree, the margin is 0 and the loss ln 2",
    "expected_gradients": "the mean gradient over what the policy samples (losses/kl.py has the table)",
    "near_zero": "near 0 the result must not be rounding noise: expm1",
    "extreme": "a margin of 10,000 must not overflow: logsigmoid, not log(sigmoid)",
    "refus": "bad arguments are refused (the stub does this: was a line of it lost?)",
}

_INSIDE = """
import importlib.util, json, sys
import pytest

module, student, names, files, purity, report = json.loads(sys.argv[1])
spec = importlib.util.spec_from_file_location("yours", student)
yours = importlib.util.module_from_spec(spec)
try:
    spec.loader.exec_module(yours)
    missing = [name for name in names if not hasattr(yours, name)]
    problem = f"it has no function {', '.join(missing)}" if missing else None
except Exception as error:
    problem = f"{type(error).__name__}: {error}"
if problem:
    json.dump({"problem": problem}, open(report, "w"))
    sys.exit()
theirs = importlib.import_module(module)
for name in names:
    setattr(theirs, name, getattr(yours, name))


class Listener:
    tests = []

    def pytest_collection_modifyitems(self, items):
        def about(item):
            if not item.path.name == "test_purity.py":
                return True
            return hasattr(item, "callspec") and item.callspec.params.get("name") in purity

        items[:] = [item for item in items if about(item)]

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            crash = getattr(report.longrepr, "reprcrash", None)
            entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", [])
            here = [e.reprfileloc.lineno for e in entries if e.reprfileloc and e.reprfileloc.path.endswith(str(report.fspath))]
            self.tests.append({"id": report.nodeid, "passed": report.passed, "file": str(report.fspath), "line": here[-1] if here else None,
                               "says": crash.message if crash else ""})


pytest.main([*files, "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-W", "ignore"], plugins=[Listener()])
json.dump({"tests": Listener.tests}, open(report, "w"))
"""


@dataclass(frozen=True)
class Outcome:
    test: str  # test_pencil_value
    passed: bool
    evidence: tuple[str, ...]  # of one that failed: the test's own comment and line, and what came instead

    @property
    def property(self) -> str:
        return next((words for part, words in PROPERTIES.items() if part in self.test), _as_words(self.test))


def _as_words(test: str) -> str:
    return test.partition("[")[0].removeprefix("test_").replace("_", " ")


def outcomes(module: str, functions: tuple[str, ...], student: Path, purity: tuple[str, ...] = ()) -> list[Outcome]:
    """Run the tests of `module` (losses/dpo.py) on the functions that `student` holds."""
    stem = Path(module).stem
    files = [ROOT / f"tests/losses/test_{stem}.py", *[ROOT / "tests/losses/test_purity.py"] * bool(purity)]
    if missing := [str(file) for file in files if not file.exists()]:
        raise UserError(
            f"{missing[0]}: no such file; exercises are checked by the project's own tests: clone the repository"
        )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        names = [str(file.relative_to(ROOT)) for file in files]
        given = json.dumps([f"losses.{stem}", str(student.resolve()), functions, names, purity, str(report)])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        done = subprocess.run(
            [sys.executable, "-c", _INSIDE, given], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if not report.exists() or '"tests": []' in report.read_text():
            raise UserError(
                f"the tests did not run: {(done.stderr or done.stdout or 'no word').strip().splitlines()[-1]}"
            )
        told = json.loads(report.read_text())
    if "problem" in told:
        raise UserError(f"{student}: {told['problem']}")
    return [Outcome(_name(t["id"]), t["passed"], () if t["passed"] else _evidence(t)) for t in told["tests"]]


def _name(node: str) -> str:
    return node.rpartition("::")[2]


def _evidence(test: dict) -> tuple[str, ...]:
    """The comments above the line that failed, that line, and the first line of what came of it."""
    lines = Path(ROOT / test["file"]).read_text(encoding="utf-8").splitlines()
    says = re.sub(r"\s+", " ", test["says"].strip().splitlines()[0] if test["says"].strip() else "")
    if test["line"] is None:
        return (says,)
    at = test["line"] - 1
    begin = at
    while begin > 0 and not lines[begin].startswith("def "):
        begin -= 1
    comments = [line.strip() for line in lines[begin:at] if line.strip().startswith("#")]
    return (*comments[-2:], lines[at].strip(), says)


def told(outcomes: list[Outcome], most: int = 5) -> list[str]:
    """What to print: the properties that hold, counted; those that fail, with their evidence."""
    failed = [o for o in outcomes if not o.passed]
    unwritten = {o.evidence[-1] for o in failed if o.evidence[-1].startswith("NotImplementedError")}
    if unwritten:
        wanted = sorted(line.partition(": ")[2] for line in unwritten)
        return [
            f"{len(outcomes) - len(failed)} of {len(outcomes)} tests pass; not written yet:",
            *(f"    {w}" for w in wanted),
        ]
    if not failed:
        return [f"all {len(outcomes)} tests pass: it has every property that the project's own has"]
    lines = [f"{len(outcomes) - len(failed)} of {len(outcomes)} tests pass; what fails, the first {most} properties:"]
    seen: dict[str, Outcome] = {}
    for outcome in failed:
        seen.setdefault(outcome.property, outcome)
    for words, outcome in list(seen.items())[:most]:
        lines += ["", f"✗ {words}", *(f"    {line}" for line in outcome.evidence)]
    if len(seen) > most:
        lines += ["", f"… and {len(seen) - most} more"]
    return lines
