"""The command: the list, --start, --check, --show; what is there is never overwritten."""

import pytest

from posttrain.exercises.__main__ import ALL, listed, main


def run(*arguments) -> int | str:
    """0, the exit code, or the sentence that goes with exit code 1."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return end.code
    return 0


def test_the_list_names_every_exercise(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ALL) and len(listed()) == len(ALL) + 5


def test_start_writes_once_and_check_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("dpo", "--start") == 0 and "YOUR LINES" in (tmp_path / "my_dpo.py").read_text()
    (tmp_path / "my_dpo.py").write_text("# mine\n")
    assert "my_dpo.py is there already, and is not overwritten" in run("dpo", "--start")
    assert (tmp_path / "my_dpo.py").read_text() == "# mine\n"
    assert "it has no function dpo_loss" in run("dpo", "--check")


def test_a_hunt_brings_its_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("hunt-3", "--start") == 0
    assert (tmp_path / "hunt_3.py").exists() and (tmp_path / "hunt_3.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "hunt_3.py").unlink()
    assert "hunt_3.png is there already" in run("hunt-3", "--start")


def test_show(capsys):
    assert run("dpo", "--show") == 0 and "margin = rewards_chosen - rewards_rejected" in capsys.readouterr().out
    assert run("hunt-3", "--show") == 0 and "The reference is the bare base" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "no exercise 'nothing'; there are sft, dpo"),
        (["--check"], "which exercise?"),
        (["dpo"], "dpo: say --start, --check or --show"),
        (["dpo", "--check", "--file", "no/such.py"], "no such file; python -m posttrain.exercises dpo --start"),
    ],
)
def test_refusals(arguments, says):
    assert says in run(*arguments)
