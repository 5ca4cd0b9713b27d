from types import SimpleNamespace

import pytest

pytest.importorskip("prometheus_client", reason="pip install -r requirements-serve.txt")

from posttrain.serving.counters import Counters
from posttrain.serving.engine import Counts

pytestmark = pytest.mark.long


def test_what_is_told():
    engine = SimpleNamespace(
        counts=Counts(prompt_tokens=30, tokens=12, steps=4, seconds=2.5), running=3, waiting=[1, 2]
    )
    counters = Counters(engine)
    counters.answered(SimpleNamespace(answers=[1, 2], began=10.0, first=10.3))
    counters.refused(429)
    counters.refused(429)
    lines = counters.text().decode().splitlines()
    for line in (
        "posttrain_answers_total 2.0",
        'posttrain_refusals_total{status="429"} 2.0',
        "posttrain_prompt_tokens_total 30.0",
        "posttrain_tokens_total 12.0",
        "posttrain_steps_total 4.0",
        "posttrain_compute_seconds_total 2.5",
        "posttrain_rows_running 3.0",
        "posttrain_requests_waiting 2.0",
        'posttrain_first_token_seconds_bucket{le="0.2"} 0.0',
        'posttrain_first_token_seconds_bucket{le="0.5"} 1.0',
    ):
        assert line in lines, line
