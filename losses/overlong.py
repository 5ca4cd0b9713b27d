"""What an answer that grows too long pays: DAPO's soft overlong punishment, a term of the reward.

    P(n) = 0                    n ≤ L − C          n = tokens of the answer, L = the most it may have
           (L − C − n) / C      L − C < n ≤ L      C = the cache: how long before the end the slope begins
           −1                   n > L

Source: DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 13. Kept: all of it. Added to what the answer is worth, it tells the
policy that it comes near the end, where a cut at L alone punishes good reasoning like bad (or, left out of the loss,
not at all). At n = L the slope has reached −1 and stays there: a public version goes on falling, and where answers
may be longer than L one of them then outweighs all the others of its group. The paper's L_cache is what some libraries
call the overlong buffer.

The reward is then no longer right or wrong: MaxRL refuses it, and dynamic sampling looks at the reward before it.

>>> import torch
>>> soft_overlong_punishment(torch.tensor([16, 17, 18, 20, 21]), 20, 4).tolist()            # (20 − 4 − 17) / 4 = −¼
[0.0, -0.25, -0.5, -1.0, -1.0]
"""

import torch
from torch import Tensor


def soft_overlong_punishment(
    lengths: Tensor,  # [N] tokens of each answer
    max_length: int,  # L
    cache: int,  # C
) -> Tensor:
    """P [N] in −1 … 0, float32, to be added to the rewards."""
    assert lengths.ndim == 1, f"lengths [N], got {list(lengths.shape)}"
    if not 0 < cache <= max_length:
        raise ValueError(f"cache must lie in 1 … max_length = {max_length}, got {cache}")
    return ((max_length - cache - lengths.float()) / cache).clamp(-1, 0)


def walk_through() -> None:
    """The docstring's example in plain Python floats: answers of 16 to 21 tokens, 20 allowed, a cache of 4."""
    from losses.walk import agree, show

    lengths, most, cache = [16, 17, 18, 20, 21], 20, 4
    print("answers of 16, 17, 18, 20 and 21 tokens; L = 20, C = 4: the slope begins behind 16\n")
    slope = [(most - cache - n) / cache for n in lengths]
    punished = [min(0.0, max(-1.0, x)) for x in slope]
    show("over", "n − (L − C): tokens of the last C, and beyond", [n - (most - cache) for n in lengths])
    show("slope", "(L − C − n) / C", slope)
    show("punishment", "between −1 and 0", punished)
    agree(punished, soft_overlong_punishment(torch.tensor(lengths), most, cache).tolist())


if __name__ == "__main__":
    walk_through()
