"""Sums as two annotators answer them."""

import pytest

from posttrain.data import worked

TASK = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1, "size": 60, "seed": 0}


@pytest.mark.parametrize(
    ("expression", "text", "result"),
    [
        ("4 + 3", "4 + 3 = 7.\n#### 7", 7),
        ("9 - 4 + 2", "9 - 4 = 5, 5 + 2 = 7.\n#### 7", 7),
        ("1 - 8 - 20", "1 - 8 = -7, -7 - 20 = -27.\n#### -27", -27),  # from the left: (1 − 8) − 20
    ],
)
def test_every_step(expression, text, result):
    assert worked.worked(expression) == (text, result)


def test_rows_of_both_annotators():
    pytest.importorskip("reasoning_gym", reason="pip install -r requirements-tasks.txt")
    rows = worked.rows(TASK, bare=0.5, seed=0)
    steps = [row["completion"] for row in rows if "=" in row["completion"]]
    bare = [row["completion"] for row in rows if "=" not in row["completion"]]
    assert len(rows) == 60 and 15 < len(bare) < 45  # 60 coins: 30 ± 3.9
    assert all(answer.startswith("#### ") for answer in bare) and all(".\n#### " in answer for answer in steps)
    assert worked.rows(TASK, bare=0.5, seed=0) == rows != worked.rows(TASK, bare=0.5, seed=1)
    assert not any("=" in row["completion"] for row in worked.rows(TASK, bare=1.0, seed=0))
    assert all("=" in row["completion"] for row in worked.rows(TASK, bare=0.0, seed=0))
