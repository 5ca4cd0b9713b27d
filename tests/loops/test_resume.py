"""A run that is killed by SIGKILL and resumed equals one that was not, bit for bit (weights, optimiser, every metric)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit import environment, tiny_family, tiny_folder

SCRIPT = Path(__file__).with_name("killed.py")
ALL = ["sft", "sft-lora", "sft-8bit-optimizer", "sft-packed", "sft-stream", "sft-best", "sft-measured", "dpo", "dpo-lora", "reward", "reward-lora", "simpo", "kto", "distill", "grpo", "grpo-dynamic", "grpo-teacher", "ppo", "ppo-shared"]  # fmt: skip
LOOPS = ["sft", "dpo", "simpo", "kto", "distill", "reward", "grpo", "grpo-dynamic", "grpo-teacher", "ppo"]


def trials(folder, wanted):
    """{case: {kill: what became of it}} of {case: kills}, in one process."""
    made = {}
    for case, kills in wanted.items():  # gpt2: dropout 0.1 everywhere
        made[case] = (
            (tiny_family if case == "sft" else tiny_folder)(
                folder / f"model-{case}", "gpt2" if case == "sft" else "llama"
            ),
            kills,
        )
        if case in ("distill", "grpo-teacher"):
            tiny_folder(folder / f"model-{case}-teacher", seed=3)
    done = subprocess.run(
        [sys.executable, SCRIPT, folder / "runs", json.dumps(made)], env=environment(), capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def checked(report, kills, said):
    """Every trial of a case was resumed to its end, and differs in nothing from the run that was not killed."""
    assert isinstance(report, dict), report  # else the traceback of what went wrong
    assert list(report) == list(kills)
    for how, found in report.items():
        assert found["exit"] == 0, (how, said[-3000:])
        assert found["differences"] == [], (how, found)
    return report


def trial(tmp_path, case, *kills):
    reports, said = trials(tmp_path, {case: kills})
    return checked(reports[case], kills, said)


@pytest.fixture(scope="module")
def killed_at_step_5(tmp_path_factory):
    return trials(tmp_path_factory.mktemp("killed"), {case: ["step:5"] for case in LOOPS})


@pytest.mark.parametrize("case", LOOPS)
def test_ten_steps_are_five_killed_and_resumed(killed_at_step_5, case):
    """save_every 3: killed when step 5 was logged, so steps 4 and 5 are computed again, in the middle of an epoch or rollout."""
    reports, said = killed_at_step_5
    assert checked(reports[case], ["step:5"], said)["step:5"]["checkpoints"] == [3]


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in ALL if case not in LOOPS])
def test_the_same_with_adapters_packing_suites_and_other_optimisers(tmp_path, case):
    """(The suites of sft-measured are due every 2 steps: killed between two of them.)"""
    report = trial(tmp_path, case, "step:5", "step:9")
    assert report["step:9"]["checkpoints"][-1] >= 6


@pytest.mark.long
def test_killed_inside_a_save(tmp_path):
    """Inside the note of what is to come (1, 2), between the files (3 to 5), among the fsyncs, inside the note of what is
    whole (19, 20), before the rename (21), after it."""
    report = trial(tmp_path, "sft", *(f"op:{n}" for n in (1, 2, 3, 5, 6, 12, 18, 19, 20, 21, 22)))
    whole = [found["checkpoints"] for found in report.values()]
    assert [] in whole and [3] in whole  # some kills fell before the checkpoint had its name, some after


@pytest.mark.long
@pytest.mark.parametrize("case", LOOPS)
def test_killed_at_random_moments(tmp_path, case):
    assert len(trial(tmp_path, case, *(f"random:{n}" for n in range(4)))) == 4


@pytest.mark.soak
@pytest.mark.parametrize("case", LOOPS)
def test_killed_at_many_random_moments(tmp_path, case):
    assert len(trial(tmp_path, case, *(f"random:{n}" for n in range(4, 24)))) == 20
