"""From logits to the log-probability of each token: every loss in this package starts here.

    log π(y_t | y_<t) = z_t[y_t] / τ − log Σ_v exp(z_t[v] / τ)

The shift, stated once. A causal model that has read tokens 0..t predicts token t + 1, so with S tokens there are
T = S − 1 predictions, and position t of every [B, T] tensor scores `input_ids[:, t + 1]`. `active` says which of those
predictions count: `active = completion_mask[:, 1:]`.

Kept from the textbooks: everything. Changed: the softmax is taken in float32 even when the logits are bfloat16. A bf16
log-probability near −7 has a spacing of 1/32 nat, and a running bf16 sum near −1400 one of 8 nats: over 200 tokens the
error can reach nats (the bug museum shows it), and a DPO margin is a few nats. (float64 stays float64, for tests by
finite differences.)

>>> import math, torch
>>> logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)], [9.0, 9.0, 9.0]]])   # [B=1, S=3, V=3]
>>> ids = torch.tensor([[1, 0, 2]])
>>> [round(x, 6) for x in token_logps(logits, ids)[0].tolist()]           # 2 − log(e² + 2),  log 2 − log 4
[-0.239545, -0.693147]
>>> [round(x, 6) for x in token_logps(logits, ids, temperature=0.6)[0].tolist()]
[-0.068918, -0.488556]
>>> active = torch.tensor([[True, False]])
>>> round(sequence_logps(token_logps(logits, ids), active).item(), 6)
-0.239545
>>> [round(x, 6) for x in token_entropy(logits)[0].tolist()]
[0.665573, 1.039721]
"""

import torch
from torch import Tensor

from losses.door import at_least_float32, same_shape
from losses.head import entropy_of, head_logps


def token_logps(
    logits: Tensor,  # [B, S, V]
    input_ids: Tensor,  # [B, S]
    *,
    temperature: float = 1.0,  # τ, the one the tokens were sampled at; 1 for supervised data
) -> Tensor:
    """log-probability of each next token: [B, T] in nats, float32; position t scores input_ids[:, t + 1]."""
    assert logits.ndim == 3 and input_ids.shape == logits.shape[:2], (
        f"logits [B, S, V] and input_ids [B, S], got {list(logits.shape)} and {list(input_ids.shape)}"
    )
    _refuse_temperature(temperature)
    predictions, targets = logits[:, :-1], input_ids[:, 1:]
    logps = torch.log_softmax(at_least_float32(predictions) / temperature, dim=-1)  # [B, T, V]
    return logps.gather(-1, targets[..., None]).squeeze(-1)  # [B, T]


def token_entropy(
    logits: Tensor,  # [B, S, V]
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Entropy of each prediction, −Σ_v p log p, in nats: [B, T] (the last position predicts nothing)."""
    assert logits.ndim == 3, f"logits [B, S, V], got {list(logits.shape)}"
    _refuse_temperature(temperature)
    return entropy_of(torch.log_softmax(at_least_float32(logits[:, :-1]) / temperature, dim=-1))


def sequence_logps(
    logps: Tensor,  # [B, T]
    active: Tensor,  # [B, T] bool: completion_mask[:, 1:]
) -> Tensor:
    """log π(completion | prompt) = Σ over its tokens: [B]. Inactive positions may hold anything, NaN too."""
    same_shape("B T", {"logps": logps, "active": active})
    assert active.dtype == torch.bool, f"active must be bool (completion_mask[:, 1:]), got {active.dtype}"
    return torch.where(active, at_least_float32(logps), 0.0).sum(dim=-1)


def chunked_token_logps(
    hidden: Tensor,  # [B, S, H] the last hidden states
    head_weight: Tensor,  # [V, H]
    input_ids: Tensor,  # [B, S]
    active: Tensor,  # [B, T] bool
    *,
    head_bias: Tensor | None = None,  # [V]
    temperature: float = 1.0,
    chunk_size: int = 1024,  # predictions whose logits are held at once
    scale: float = 1.0,  # of a model that scales its logits
    softcap: float | None = None,  # of a model that caps them
    keep_bytes: int = 0,  # memory that a trained head may take to be faster
) -> tuple[Tensor, Tensor]:
    """token_logps and token_entropy without ever holding the logits [B, S, V]: two [B, T], float32, exactly 0 where
    inactive.

    A batch of 8 × 1,024 tokens and 152,000 entries is 5 GB of float32 logits, several times over in the backward pass.
    Two things avoid that. The head runs only where a prediction is active (prompt and padding cost nothing), and it
    runs over `chunk_size` predictions at a time; a chunk's logits are not kept (losses/head.py says what is). Same
    value and same gradient as the plain way (tests/losses/test_logprobs.py).
    """
    assert hidden.ndim == 3 and input_ids.shape == hidden.shape[:2], (
        f"hidden [B, S, H] and input_ids [B, S], got {list(hidden.shape)} and {list(input_ids.shape)}"
    )
    assert active.shape == (hidden.shape[0], hidden.shape[1] - 1) and active.dtype == torch.bool, (
        f"active [B, S - 1] bool, got {list(active.shape)} {active.dtype}"
    )
    _refuse_temperature(temperature)

    where = active.flatten().nonzero().squeeze(-1)  # [N] which of the B·T predictions count
    states = hidden[:, :-1].flatten(0, 1)[where]  # [N, H]
    targets = input_ids[:, 1:].flatten()[where]  # [N]
    logps, entropy = head_logps(
        states,
        head_weight,
        targets,
        head_bias=head_bias,
        temperature=temperature,
        scale=scale,
        softcap=softcap,
        chunk_size=chunk_size,
        keep_bytes=keep_bytes,
    )
    zeros = logps.new_zeros(active.numel())
    return zeros.index_copy(0, where, logps).view_as(active), zeros.index_copy(0, where, entropy).view_as(active)


def _refuse_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: log-probabilities at 0 are all 0 or -inf")


def walk_through() -> None:
    """The docstring's example in plain Python floats: one row, three tokens, a vocabulary of three."""
    import math

    from losses.walk import agree, show

    rows, ids = [[2.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)]], [1, 0, 2]
    print(
        "ids = [1, 0, 2]: position 0 predicts id 0 from logits [2, 0, 0], position 1 predicts id 2 from [0, 0, log 2]\n"
    )
    for temperature in (1.0, 0.6):
        logps, entropies = [], []
        for t, z in enumerate(rows):
            scaled = [x / temperature for x in z]
            normaliser = math.log(sum(math.exp(x) for x in scaled))
            logp = [x - normaliser for x in scaled]
            logps.append(logp[ids[t + 1]])
            entropies.append(-sum(math.exp(x) * x for x in logp))
            show(f"position {t}, τ={temperature}", "logits / τ", scaled)
            show("  normaliser", "log Σ_v exp(z_v / τ)", normaliser)
            show("  log p(target)", f"z[{ids[t + 1]}] / τ − normaliser", logps[-1])
            show("  entropy", "−Σ_v p_v log p_v", entropies[-1])
        logits, tensor_ids = torch.tensor([[*rows, [9.0] * 3]]), torch.tensor([ids])
        agree(logps, token_logps(logits, tensor_ids, temperature=temperature)[0].tolist())
        agree(entropies, token_entropy(logits, temperature=temperature)[0].tolist())


if __name__ == "__main__":
    walk_through()
