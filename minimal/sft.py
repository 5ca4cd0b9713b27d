"""Supervised fine-tuning on one page. The same steps as loops/sft.py (tests/test_minimal.py).

    python -m minimal.sft

What the other lines of loops/sft.py are for: docs/minimal.md.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain.run.steps import epoch_order
from posttrain.tiny.data import rows
from posttrain.tiny.names import path_of
from posttrain.tokens import template

STEPS, BATCH, LEARNING_RATE, MAX_GRAD_NORM, SEED = 200, 16, 2.5e-3, 1.0, 0

Row = tuple[list[int], list[bool]]  # token ids; True on those to learn


def encode(tokenizer, messages: list[dict]) -> Row:
    """A conversation of one question and one answer -> its ids, and the mask that is True on the answer's."""
    *asked, reply = messages
    prompt = template.prompt_ids(tokenizer, asked)
    completion = template.completion_ids(tokenizer, asked, reply)  # ends with the turn-end token: learned, too
    return prompt + completion, [False] * len(prompt) + [True] * len(completion)


def collate(batch: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """-> ids [B, S], mask [B, S], padded on the right: under causal attention no real token sees a pad behind it."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    mask = torch.tensor([mask + [False] * (width - len(mask)) for _, mask in batch])
    return ids, mask


def train(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[float]]:
    """-> (the trained model, the loss of each step)."""
    folder = path_of("tiny-base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [encode(tokenizer, row["messages"]) for row in rows("tiny-sft")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    order, losses = epoch_order(len(data), SEED, epoch=0), []  # one pass over the rows, shuffled

    for step in range(steps):
        batch = [data[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        ids, mask = collate(batch, tokenizer.pad_token_id)
        active = mask[:, 1:]  # [B, T] which predictions count: position t predicts token t + 1

        logps = token_logps(model(ids).logits, ids)  # [B, T] log π of each next token
        weights = token_weights(active)  # [B, T] 1 / (tokens to learn in this step); 0 on prompt and padding
        loss, _ = completion_cross_entropy(logps, weights)  # Σ w · −log π

        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()

        losses.append(loss.item())
        print(f"step {step + 1}  loss {losses[-1]:.4f}")
    return model, losses


if __name__ == "__main__":
    train()
