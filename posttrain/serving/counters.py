"""What is counted since the start, as Prometheus reads it."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from posttrain.serving.conversation import Conversation
from posttrain.serving.engine import Engine

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Counters:
    media_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine):
        self.started = int(time.time())
        self.registry = CollectorRegistry()
        self.answers = Counter("posttrain_answers", "answers that were given whole", registry=self.registry)
        self.refusals = Counter("posttrain_refusals", "requests that were refused", ["status"], registry=self.registry)
        self.first = Histogram("posttrain_first_token_seconds", "from a request to its first token", registry=self.registry, buckets=SECONDS)  # fmt: skip
        self.whole = Histogram("posttrain_request_seconds", "from a request to its last token", registry=self.registry, buckets=SECONDS)  # fmt: skip
        self.registry.register(_OfTheEngine(engine))

    def answered(self, conversation: Conversation) -> None:
        self.answers.inc(len(conversation.answers))
        self.first.observe(conversation.first - conversation.began)
        self.whole.observe(time.monotonic() - conversation.began)

    def refused(self, status: int) -> None:
        self.refusals.labels(str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _OfTheEngine:
    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self):
        counts = self.engine.counts
        yield GaugeMetricFamily("posttrain_rows_running", "answers that are being written", value=self.engine.running)
        yield GaugeMetricFamily("posttrain_requests_waiting", "requests that wait", value=len(self.engine.waiting))
        yield CounterMetricFamily("posttrain_prompt_tokens", "tokens of prompts read", value=counts.prompt_tokens)
        yield CounterMetricFamily("posttrain_tokens", "tokens said", value=counts.tokens)
        yield CounterMetricFamily("posttrain_steps", "steps of the batch: tokens / steps is how full it was", value=counts.steps)  # fmt: skip
        yield CounterMetricFamily("posttrain_compute_seconds", "seconds in which the model computed", value=counts.seconds)  # fmt: skip
