"""Models: loading, saving, log-probabilities, LoRA, quantisation, the reference, scalar heads, sharding, memory."""

from posttrain.models.loading import from_scratch, load, load_policy, max_length, no_dropout
from posttrain.models.logps import CompletionLogps
from posttrain.models.saving import save

__all__ = ["CompletionLogps", "from_scratch", "load", "load_policy", "max_length", "no_dropout", "save"]
