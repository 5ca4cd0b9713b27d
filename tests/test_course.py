"""The course: ten steps, each there, and every file, exercise and picture that it names exists."""

import re

from posttrain import ROOT
from posttrain.exercises.__main__ import ALL

PAGE = (ROOT / "docs/course.md").read_text(encoding="utf-8")
FOLDERS = ("", "posttrain/")


def test_ten_steps_in_the_table_and_below_it():
    table = re.findall(r"^\| (\d+) \| \[(.+?)\]\(#(\S+)\) \| (\d+) \|", PAGE, re.MULTILINE)
    assert [int(number) for number, *_ in table] == list(range(1, 11))
    heads = re.findall(r"^## (\d+\. .+)$", PAGE, re.MULTILINE)
    assert heads == [f"{number}. {name}" for number, name, *_ in table]
    for number, name, anchor, _ in table:
        assert anchor == re.sub(r"[^\w -]", "", f"{number}. {name}").lower().replace(" ", "-")
    hours = sum(int(minutes) for *_, minutes in table) / 60
    assert 7.5 <= hours <= 9 and "eight hours or so" in PAGE
    for part in re.split(r"(?m)^## \d+\. ", PAGE)[1:11]:
        assert "**Answer:**" in part or "**Done**" in part, part[:40]


def test_every_file_it_names_exists():
    named = set(re.findall(r"`((?:losses|minimal|loops|posttrain|configs|tests)/[\w./]+\.(?:py|yaml))`", PAGE))
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), name


def test_every_exercise_it_names_exists():
    named = set(re.findall(r"exercises ([a-z]+[\w-]*)", PAGE)) | set(re.findall(r"`(hunt-\d+)`", PAGE))
    assert named - {"with"} and named - {"with"} <= set(ALL), named
