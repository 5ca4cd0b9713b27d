"""Group relative policy optimisation on one page. The same steps as loops/grpo.py
(tests/test_minimal.py).

    python -m minimal.grpo

What the other lines of loops/grpo.py are for: docs/minimal.md.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from losses.advantages import group_relative_advantages
from losses.grpo import grpo_loss
from losses.logprobs import token_logps
from losses.weights import token_weights
from posttrain.rollouts.rewards import answer
from posttrain.rollouts.sampling import draw_uniforms, inverse_transform
from posttrain.run.steps import epoch_order
from posttrain.tiny.data import rows
from posttrain.tiny.names import path_of
from posttrain.tokens import template

STEPS, PROMPTS, GROUP, MAX_NEW_TOKENS = 60, 16, 8, 28
LEARNING_RATE, MAX_GRAD_NORM, KL_COEF, SEED = 5e-4, 1.0, 0.02, 0


@torch.no_grad()
def sample(policy: nn.Module, prompt: list[int], uniforms: Tensor, stops: list[int]) -> list[list[int]]:
    """One answer to the prompt per row of uniforms [G, max_new_tokens], up to its first stop token. No key-value cache:
    all is read again for each new token (posttrain/rollouts/sampling.py is the fast way)."""
    ids = torch.tensor([prompt] * len(uniforms))
    for u in uniforms.T:  # the next token of all G answers; what is said after a stop token is cut off below
        probs = torch.softmax(policy(ids).logits[:, -1], dim=-1)  # [G, V], at temperature 1
        ids = torch.cat([ids, inverse_transform(probs, u)[:, None]], dim=1)
        if torch.isin(ids[:, len(prompt) :], torch.tensor(stops)).any(dim=1).all():
            break
    said = ids[:, len(prompt) :].tolist()
    ends = [next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens)) for tokens in said]
    return [tokens[:end] for tokens, end in zip(said, ends, strict=True)]


def train(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[float]]:
    """-> (the trained policy, the loss of each step)."""
    folder = path_of("tiny-sft")
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    reference = copy.deepcopy(policy)  # the policy as it is now; never trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops, data = template.stop_ids(tokenizer), rows("tiny-math")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    order, losses = epoch_order(len(data), SEED, epoch=0), []

    for step in range(steps):
        # ---- Rollout: G answers to each prompt ------------------------------------------------------------------
        asked = [data[i] for i in order[step * PROMPTS : (step + 1) * PROMPTS]]
        prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": row["prompt"]}]) for row in asked]
        uniforms = draw_uniforms(PROMPTS * GROUP, MAX_NEW_TOKENS, seed=SEED, step=step).split(GROUP)
        answers = [(p, a) for p, u in zip(prompts, uniforms, strict=True) for a in sample(policy, p, u, stops)]

        # ---- Rewards, and how much better each answer is than its group ------------------------------------------
        texts = tokenizer.batch_decode([said for _, said in answers], skip_special_tokens=True)
        right = [row["answer"] for row in asked for _ in range(GROUP)]
        rewards = torch.tensor(answer(texts, right, finished=[said[-1] in stops for _, said in answers]))  # [N]
        advantages = group_relative_advantages(rewards, GROUP)  # [N] (r − mean) / std; 0 in a dead group

        # ---- One update on what was just sampled ------------------------------------------------------------------
        width = max(len(prompt + said) for prompt, said in answers)
        ids = torch.tensor([(p + a + [0] * width)[:width] for p, a in answers])  # padded on the right
        active = torch.tensor([([False] * len(p) + [True] * len(a) + [False] * width)[1:width] for p, a in answers])
        logps = token_logps(policy(ids).logits, ids)  # [N, T]; without its gradient it is the old policy's, too
        with torch.no_grad():
            ref_logps = token_logps(reference(ids).logits, ids)
        loss, _ = grpo_loss(
            logps, logps.detach(), advantages, token_weights(active), ref_logps=ref_logps, kl_coef=KL_COEF
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()

        losses.append(loss.item())
        print(f"step {step + 1}  loss {losses[-1]:.4f}  reward {rewards.mean():.3f}")
    return policy, losses


if __name__ == "__main__":
    train()
