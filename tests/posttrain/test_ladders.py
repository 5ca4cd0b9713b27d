"""Several ladders side by side: min / median / max, by hand."""

import json

import pytest

from posttrain import ladders

NAMES = ("arithmetic", "pass_at", "worked", "old_name", "new_name", "facts", "kl", "seconds")


def ladder(folder, *stages):
    folder.mkdir()
    rows = [
        {"stage": name, **dict.fromkeys(NAMES, value), "seconds": seconds, "kl": kl}
        for name, value, seconds, kl in stages
    ]
    (folder / "rungs.json").write_text(json.dumps(rows))
    return str(folder)


def test_min_median_max_of_every_stage(tmp_path, monkeypatch, capsys):
    folders = [
        ladder(tmp_path / str(i), ("base", 0.0, 60, None), ("sft", value, seconds, kl))
        for i, (value, seconds, kl) in enumerate([(0.5, 10.4, 7.0), (0.25, 30.6, 9.0), (0.375, 20, 8.0)])
    ]
    monkeypatch.setattr("sys.argv", ["ladders", *folders])
    ladders.main()
    head, _, base, sft = capsys.readouterr().out.splitlines()
    assert head == "| stage | arithmetic | pass@k | worked | old name | new name | facts | KL | seconds |"
    zero = "0.00 / 0.00 / 0.00"
    assert (
        base == f"| base | {' | '.join([zero] * 6)} |  | 60 / 60 / 60 |"
    )  # the base has no stage before it, and no KL
    share = "0.25 / 0.38 / 0.50"
    assert sft == f"| sft | {' | '.join([share] * 6)} | 7.00 / 8.00 / 9.00 | 10 / 20 / 31 |"


def test_a_folder_that_is_no_ladder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ladders", ladder(tmp_path / "a", ("base", 0.0, 1, None)), str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .*: no rungs.json there; a finished ladder writes one"):
        ladders.main()
