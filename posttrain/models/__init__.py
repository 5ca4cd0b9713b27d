"""Models: loading, saving, log-probabilities, LoRA, quantisation, the reference, scalar heads, sharding, memory."""

from posttrain.models.loading import (
    device_of,
    from_scratch,
    load,
    load_policy,
    max_length,
    no_dropout,
    reads_at_most,
)  # fmt: skip
from posttrain.models.logps import CompletionLogps
from posttrain.models.saving import save

__all__ = [
    "CompletionLogps", "device_of", "from_scratch", "load", "load_policy", "max_length", "no_dropout", "reads_at_most", "save",
]  # fmt: skip
