"""How large a named model is, read from its config alone."""

from __future__ import annotations

from typing import Any

from posttrain.models import loading, lora
from posttrain.models.memory import shape_of

# parameters. On a CPU that is fast in bf16, 135 million are trained two to three times as fast in it
# (benchmarks/RESULTS.md); a model of a few million is faster, and easier to check, in float32
LARGE = 50_000_000


def config_of(name: str, trust_remote_code: bool = False) -> Any:
    """The transformers config of model.name; of an adapter, that of the model under it."""
    from transformers import AutoConfig

    path = loading.find(name)
    while lora.is_adapter(path):
        path = lora.base_of(path).name
    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def is_large(model: Any) -> bool:
    """config.model; False where it has no name (pretraining) or cannot be read: loading it says why."""
    try:
        return shape_of(config_of(model.name, model.trust_remote_code)).parameters > LARGE
    except Exception:
        return False
