"""Proximal policy optimisation on one page. The same steps as loops/ppo.py (tests/test_minimal.py).

    python -m minimal.ppo

What the other lines of loops/ppo.py are for: docs/minimal.md.
"""

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from losses.gae import gae, kl_shaped_rewards, whiten
from losses.logprobs import token_logps
from losses.ppo import ppo_policy_loss, ppo_value_loss
from losses.weights import token_weights
from posttrain.rollouts.rewards import answer
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.run.steps import epoch_order, minibatches
from posttrain.tiny.data import rows
from posttrain.tiny.names import path_of
from posttrain.tokens import template

ROLLOUTS, PROMPTS, MINIBATCHES, PASSES, MAX_NEW_TOKENS, SEED = 15, 256, 8, 2, 28, 0
LR, CRITIC_LR, MAX_GRAD_NORM, KL_COEF, LAM, CLIP_EPS, VALUE_COEF = 2e-4, 3e-3, 1.0, 0.02, 0.9, 0.2, 0.5


class Critic(nn.Module):  # a copy of the policy's backbone, with one number after every token: the reward to come
    def __init__(self, policy: nn.Module):
        super().__init__()
        self.backbone = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.hidden_size, 1, bias=False, dtype=policy.dtype)
        nn.init.zeros_(self.head.weight)  # it knows nothing yet: every value is 0

    def forward(self, ids):  # [N, S] -> [N, T]: the value before token t + 1 is said, from the state after token t
        return self.head(self.backbone(ids).last_hidden_state).squeeze(-1)[:, :-1]


def train(steps: int | None = None, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, list[float]]:
    """-> (the trained policy, its critic, the loss of each step)."""
    folder = path_of("tiny-sft")
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    reference, critic = copy.deepcopy(policy), Critic(policy)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops, data = template.stop_ids(tokenizer), rows("tiny-math")
    slow, fast = {"params": policy.parameters()}, {"params": critic.parameters(), "lr": CRITIC_LR}
    optimizer = torch.optim.AdamW([slow, fast], lr=LR, weight_decay=0.0)
    order, losses = epoch_order(len(data), SEED, epoch=0), []
    for number in range(ROLLOUTS):
        # ---- Rollout: one answer to each prompt, and its score ----------------------------------------------------
        asked = [data[i] for i in order[number * PROMPTS : (number + 1) * PROMPTS]]
        prompts = [template.prompt_ids(tokenizer, [{"role": "user", "content": row["prompt"]}]) for row in asked]
        uniforms = draw_uniforms(PROMPTS, MAX_NEW_TOKENS, seed=SEED, step=number)
        rollout = sample(policy, prompts, max_new_tokens=MAX_NEW_TOKENS, stop_ids=stops, pad_id=0, uniforms=uniforms)
        scores = answer(rollout.texts(tokenizer), [row["answer"] for row in asked], rollout.finished)
        answers = list(zip(prompts, rollout.completion_ids, strict=True))
        width = max(len(p + a) for p, a in answers)
        ids = torch.tensor([(p + a + [0] * width)[:width] for p, a in answers])  # [N, S], padded on the right
        active = torch.tensor([([False] * len(p) + [True] * len(a) + [False] * width)[1:width] for p, a in answers])

        # ---- What policy, critic and reference say of it, before anything moves; credit for every token -----------
        with torch.no_grad():
            old_logps, old_values = token_logps(policy(ids).logits, ids), critic(ids)  # [N, T]
            ref_logps = token_logps(reference(ids).logits, ids)
        rewards = kl_shaped_rewards(old_logps.new_tensor(scores), old_logps, ref_logps, active, KL_COEF)
        advantages, returns = gae(rewards, old_values, active, lam=LAM)
        advantages = whiten(advantages, active)

        # ---- Several updates on one rollout: the ratio leaves 1, and the clip acts --------------------------------
        for picked in minibatches(PROMPTS, MINIBATCHES, PASSES, SEED, number):
            x, weights = ids[picked], token_weights(active[picked])
            logps, values = token_logps(policy(x).logits, x), critic(x)
            policy_loss, _ = ppo_policy_loss(logps, old_logps[picked], advantages[picked], weights, clip_eps=CLIP_EPS)
            value_loss, _ = ppo_value_loss(values, old_values[picked], returns[picked], weights, clip_eps=None)
            loss = policy_loss + VALUE_COEF * value_loss
            optimizer.zero_grad()
            loss.backward()
            for network in (policy, critic):  # each by its own norm
                nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                return policy, critic, losses
        print(f"rollout {number + 1}  loss {losses[-1]:.4f}  reward {sum(scores) / PROMPTS:.3f}")
    return policy, critic, losses


if __name__ == "__main__":
    train()
