import pytest
from kit import write_jsonl


@pytest.fixture
def two(tmp_path):
    """Two sources: 100 rows of plain text, 30 of prompt and completion."""
    a = write_jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(100)])
    b = write_jsonl(tmp_path / "b.jsonl", [{"prompt": f"b{i}", "completion": "x"} for i in range(30)])
    return [a, b]
