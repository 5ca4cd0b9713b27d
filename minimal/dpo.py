"""Direct preference optimisation on one page. The same steps as loops/dpo.py, all weights trained
(tests/test_minimal.py).

    python -m minimal.dpo

What the other lines of loops/dpo.py are for: docs/minimal.md.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from losses.dpo import dpo_loss
from losses.logprobs import sequence_logps, token_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain.run.steps import epoch_order
from posttrain.tiny.data import rows
from posttrain.tiny.names import path_of
from posttrain.tokens import template

STEPS, BATCH, LEARNING_RATE, MAX_GRAD_NORM, SEED = 50, 16, 2.5e-4, 1.0, 0
BETA = 0.1  # the strength of the pull towards the reference
SFT_WEIGHT = 1.0  # times the chosen answers' mean NLL: keeps their probability from falling

Row = tuple[list[int], list[bool]]  # token ids; True on the answer's


def encode(tokenizer, prompt: str, answer: str) -> Row:
    asked = [{"role": "user", "content": prompt}]
    before, completion = template.prompt_ids(tokenizer, asked), template.completion_ids(tokenizer, asked, answer)
    return before + completion, [False] * len(before) + [True] * len(completion)


def collate(batch: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """-> ids [B, S], mask [B, S], padded on the right: under causal attention no real token sees a pad behind it."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    mask = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in batch])
    return ids, mask


def train(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[float]]:
    """-> (the trained policy, the loss of each step)."""
    folder = path_of("tiny-sft")
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    reference = copy.deepcopy(policy)  # the policy as it is now; never trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [
        [encode(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        for row in rows("tiny-identity")
    ]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    order, losses = epoch_order(len(data), SEED, epoch=0), []  # one pass over the pairs, shuffled

    for step in range(steps):
        pairs = [data[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        ids, mask = collate([c for c, _ in pairs] + [r for _, r in pairs], tokenizer.pad_token_id)  # chosen, rejected
        active = mask[:, 1:]  # [2B, T] which predictions count: position t predicts token t + 1

        logps = token_logps(policy(ids).logits, ids)  # [2B, T]
        with torch.no_grad():
            ref_logps = token_logps(reference(ids).logits, ids)
        chosen, rejected = sequence_logps(logps, active).chunk(2)  # [B] each: Σ log π over the answer
        ref_chosen, ref_rejected = sequence_logps(ref_logps, active).chunk(2)
        loss, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=BETA)  # −log σ(margin); first: ln 2
        nll, _ = completion_cross_entropy(logps[: len(pairs)], token_weights(active[: len(pairs)]))
        loss = loss + SFT_WEIGHT * nll

        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()

        losses.append(loss.item())
        margin = metrics["margin"][0] / metrics["margin"][1]
        print(f"step {step + 1}  loss {losses[-1]:.4f}  margin {margin:.3f}")
    return policy, losses


if __name__ == "__main__":
    train()
