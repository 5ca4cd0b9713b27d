"""The losses that are functions of the same four log-probs, by the names that configs call them by.

    sigmoid    −log σ(β h)                    losses/dpo.py (with label_smoothing: conservative DPO)
    ipo        (h − 1/(2β))²                  losses/ipo.py
    robust     unbiased under wrong labels    losses/robust_dpo.py
    dpop       −log σ(β (h − λ max(0, −r_w))) losses/dpop.py
    apo_zero   1 − σ(β r_w) + σ(β r_l)        losses/apo.py
    apo_down   σ(β r_w) + 1 − σ(β h)          losses/apo.py

>>> import torch
>>> nothing_has_moved = torch.zeros(4, 1)                        # h = 0: where every run starts
>>> [round(preference_loss(name, beta=0.1)(*nothing_has_moved)[0].item(), 6) for name in ("sigmoid", "ipo", "apo_zero")]
[0.693147, 25.0, 1.0]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from losses.apo import apo_down_loss, apo_zero_loss
from losses.door import Metrics
from losses.dpo import dpo_loss
from losses.dpop import dpop_loss
from losses.ipo import ipo_loss
from losses.robust_dpo import robust_dpo_loss

LOSSES: dict[str, Callable[..., tuple[Tensor, Metrics]]] = {
    "sigmoid": dpo_loss,
    "ipo": ipo_loss,
    "robust": robust_dpo_loss,
    "dpop": dpop_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
}


def preference_loss(
    name: str,
    *,
    beta: float,
    label_smoothing: float | None = None,  # ε, for sigmoid and robust
    penalty: float | None = None,  # λ, for dpop
) -> Callable[..., tuple[Tensor, Metrics]]:
    """The loss of that name with its own keys set: f(policy_chosen, policy_rejected, ref_chosen, ref_rejected, *,
    weights=None) -> (loss [], metrics), four [B]. TypeError when called for a key that the loss does not read."""
    keys: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing, "penalty": penalty}
    return partial(LOSSES[name], **{key: value for key, value in keys.items() if value is not None})
