"""What one token counts. Every loss is `(weights * per_token).sum()`, so this file decides what is averaged over what.

    token      w[i, t] = 1 / N             N = active tokens of the whole optimiser step
    sequence   w[i, t] = 1 / (R · |o_i|)   R = rows with an active token, |o_i| = how many it has
    constant   w[i, t] = 1 / (R · L)       L = the longest completion allowed

Sources: DAPO, arXiv 2503.14476, eq. 8; GRPO, arXiv 2402.03300, eq. 3; Dr. GRPO, arXiv 2503.20783, §3.1.

"sequence" gives every answer the same vote, so a token of a long answer counts less: a long wrong answer is punished
less per token than a short one. "token" gives every token the same vote. "constant" does too, and does not even let
the length of the other answers in the batch matter.

Why a loss never divides: a mean over a micro-batch cannot be put together again. Two micro-batches with token NLLs
{4} and {1, 1, 1} have the means 4 and 1; their mean is 2.5, the mean over the tokens is 7/4 = 1.75. So the *total* is
counted once per optimiser step, over all micro-batches and processes, each micro-batch weighs its tokens with it, and
the sums add up to what one big batch would have given, exactly.

>>> import torch
>>> active = torch.tensor([[True, True, False, False], [True, True, True, True]])     # answers of 2 and 4 tokens
>>> [round(x, 6) for x in token_weights(active, "token")[:, 0].tolist()]              # 1/6 each
[0.166667, 0.166667]
>>> [round(x, 6) for x in token_weights(active, "sequence")[:, 0].tolist()]           # 1/(2·2), 1/(2·4)
[0.25, 0.125]
>>> [round(x, 6) for x in token_weights(active, "constant", total=2 * 8)[:, 0].tolist()]   # 1/(2·8)
[0.0625, 0.0625]
>>> [step_total([2, 4], how, longest=8) for how in ("token", "sequence", "constant")]
[6, 2, 16]
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def step_total(lengths: Iterable[int], how: str = "token", *, longest: int | None = None) -> int:
    """What the weights of a whole optimiser step are divided by, from the active tokens of each of its rows.

    It is counted over all micro-batches, summed over all processes, and then given to token_weights for each
    micro-batch. longest: L, the longest completion allowed; for "constant" only."""
    lengths = list(lengths)
    rows = sum(length > 0 for length in lengths)
    if how == "token":
        return sum(lengths)
    if how == "sequence":
        return rows
    if how == "constant" and longest is not None:
        return rows * longest
    raise ValueError(f'how must be "token", "sequence" or "constant" (which needs longest), got {how!r}')


def token_weights(
    active: Tensor,  # [B, T] bool
    how: str = "token",
    *,
    total: float
    | Tensor
    | None = None,  # step_total(…) of the whole optimiser step, all micro-batches and processes together
) -> Tensor:
    """w [B, T] float32, exactly 0 where inactive.

    total None: this batch's tokens; this batch's rows with at least one active token; ValueError for "constant"."""
    assert active.ndim == 2 and active.dtype == torch.bool, (
        f"active [B, T] bool, got {list(active.shape)} {active.dtype}"
    )
    if total is not None and not isinstance(total, Tensor) and total <= 0 and active.any():
        raise ValueError(f"total must be above 0 where a token is active, got {total}")

    tokens = active.sum(dim=-1, keepdim=True).float()  # [B, 1]
    if how == "token":
        per_token, default_total = torch.ones_like(tokens), tokens.sum()
    elif how == "sequence":
        per_token, default_total = 1.0 / tokens.clamp(min=1), (tokens > 0).sum()
    elif how == "constant":
        if total is None:
            raise ValueError(
                'how="constant" needs total = rows × longest completion allowed: it must not depend on the batch'
            )
        per_token, default_total = torch.ones_like(tokens), None
    else:
        raise ValueError(f'how must be "token", "sequence" or "constant", got {how!r}')
    total = torch.as_tensor(default_total if total is None else total, dtype=torch.float32, device=active.device)
    return torch.where(active, per_token / total.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


def walk_through() -> None:
    """The docstring's example in plain Python floats: answers of 2 and 4 tokens."""
    from losses.walk import agree, show

    active = torch.tensor([[True, True, False, False], [True, True, True, True]])
    lengths, rows, longest = [2, 4], 2, 8
    print("two answers, of 2 and of 4 tokens; the longest allowed is 8\n")
    by_hand = {
        "token": [1 / sum(lengths) for _ in lengths],
        "sequence": [1 / (rows * n) for n in lengths],
        "constant": [1 / (rows * longest) for _ in lengths],
    }
    formulas = {"token": "1 / N, N = 2 + 4", "sequence": "1 / (R · |o_i|), R = 2", "constant": "1 / (R · L), L = 8"}
    for how, values in by_hand.items():
        total = {"token": 6, "sequence": 2, "constant": 16}[how]  # 2 + 4; two rows; two rows of 8
        agree(total, step_total(lengths, how, longest=longest))
        show(how, formulas[how] + "   (per token of each answer)", values)
        agree(values, token_weights(active, how, total=total)[:, 0].tolist())
        show(
            "  sum over tokens", "Σ_t w: the vote of each answer", [v * n for v, n in zip(values, lengths, strict=True)]
        )


if __name__ == "__main__":
    walk_through()
