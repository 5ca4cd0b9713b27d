"""*Find the mistake.* A hunt is a page of minimal/ with one mistake from the bug museum (tests/museum.py) in it,
unmarked, and the curves of a run beside those of the sound page. It runs to its end without an error, as such mistakes
do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from posttrain import ROOT
from posttrain.errors import UserError


@dataclass(frozen=True)
class Hunt:
    name: str
    page: str  # of minimal/
    symptom: str  # what the one who ran it says
    changes: tuple[tuple[str, str], ...]  # (what stands on the sound page, what stands here): one mistake
    told: str  # what it is, what gives it away, what refuses it in the real loop

    def text(self) -> str:
        """The page with its mistake."""
        file = ROOT / f"minimal/{self.page}.py"
        if not file.exists():
            raise UserError(f"{file}: no such file; hunts are made from the pages of the repository: clone it")
        text = file.read_text(encoding="utf-8")
        body = text.partition('"""\n\n')[2]
        for right, wrong in self.changes:
            if body.count(right) != 1:
                raise UserError(
                    f"{self.name}: minimal/{self.page}.py does not hold this once: {right!r}; mend hunts.py"
                )
            body = body.replace(right, wrong)
        return f'"""{self.name}: {self.symptom}\n\nOne mistake is in here. python -m posttrain.exercises {self.name} --check\n"""\n\n{body}'

    def curves(self) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """(sound, with the mistake): one dict a printed line, as recorded (record.py)."""
        recorded = json.loads((Path(__file__).parent / "curves.json").read_text(encoding="utf-8"))
        return recorded[self.page], recorded[self.name]


HUNTS = [
    Hunt(
        "hunt-1",
        "sft",
        "a lower loss than my colleague's from the first step on, and a model that talks without end",
        (
            (
                "[mask + [False] * (width - len(mask)) for _, mask in batch])",
                "[mask + [True] * (width - len(mask)) for _, mask in batch]) & (ids != pad)",
            ),
            (
                "    optimizer = torch.optim",
                "    tokenizer.pad_token = tokenizer.eos_token\n    optimizer = torch.optim",
            ),
        ),
        "The mask is taken from token values (`ids != pad`), and the tokenizer pads with its end token: so the end of every "
        "answer is masked like padding, and stopping is never taught. The loss looks good because the easiest token to get "
        "wrong is left out. In the real loop masks come from lengths alone, and preflight `stop_token` refuses a first step "
        "without a stop token. Museum: mask_from_pad_id.",
    ),
    Hunt(
        "hunt-2",
        "sft",
        "a smaller micro-batch to save memory, and now the loss curve differs",
        (
            (
                "        logps = token_logps(model(ids).logits, ids)  # [B, T] log π of each next token\n"
                "        weights = token_weights(active)  # [B, T] 1 / (tokens to learn in this step); 0 on prompt and padding\n"
                "        loss, _ = completion_cross_entropy(logps, weights)  # Σ w · −log π\n"
                "\n"
                "        optimizer.zero_grad()\n"
                "        loss.backward()\n",
                "        optimizer.zero_grad()\n"
                "        loss = torch.tensor(0.0)\n"
                "        for x, on in zip(ids.split(4), active.split(4), strict=True):  # micro-batches of 4 rows\n"
                "            logps = token_logps(model(x).logits, x)\n"
                "            part, _ = completion_cross_entropy(logps, token_weights(on))\n"
                "            (part / 4).backward()\n"
                "            loss = loss + part.detach() / 4\n",
            ),
        ),
        "A mean of the micro-batches' means: `token_weights(on)` counts the tokens of its own micro-batch, so a token in one "
        "with short answers counts more than one beside long answers, and memory settings change the mathematics. Count first, "
        "over the whole step: `token_weights(on, total=active.sum())`, and no `/ 4`. Museum: token_weights_of_the_micro_batch.",
    ),
    Hunt(
        "hunt-3",
        "dpo",
        "the margin rises as it should; I changed nothing but where the reference comes from",
        (
            (
                "copy.deepcopy(policy)  # the policy as it is now; never trained",
                'AutoModelForCausalLM.from_pretrained(path_of("tiny-base"), dtype=dtype)  # never trained',
            ),
        ),
        "The reference is the bare base, not the model that DPO starts from. The sign is in the first line: the margin is not 0, "
        "the DPO term not ln 2. The real loop refuses it (preflight `start`). In the wild: `disable_adapter()` after an SFT "
        "adapter. Museum: adapter_off_after_an_sft_adapter.",
    ),
    Hunt(
        "hunt-4",
        "dpo",
        "long rows no longer fit, so I cut them; every margin starts at 0, so the reference is right",
        (
            (
                "    return before + completion, [False] * len(before) + [True] * len(completion)",
                "    ids, mask = before + completion, [False] * len(before) + [True] * len(completion)\n"
                "    return ids[-24:], mask[-24:]  # at most 24 tokens",
            ),
        ),
        "Each side is cut from the left by its own length, so the two answers stand behind different prompts, and a short answer "
        "keeps more of the question than a long one: what is compared is no preference. Cut the prompt, the same for both, or drop "
        "the pair. Museum: truncate_each_side_from_the_left.",
    ),
    Hunt(
        "hunt-5",
        "dpo",
        "the log-probs take half the memory now, and nobody can tell the curves apart",
        (
            (
                "logps = token_logps(policy(ids).logits, ids)  # [2B, T]",
                "logps = token_logps(policy(ids).logits, ids).bfloat16()  # [2B, T]",
            ),
            (
                "ref_logps = token_logps(reference(ids).logits, ids)",
                "ref_logps = token_logps(reference(ids).logits, ids).bfloat16()",
            ),
        ),
        "Log-probs in bf16: eight significant bits, so near −7 they move in steps of 1/32. The margin moves in steps, too, and "
        "over long answers the error grows to nats, which is more than the margin. (Here they are short, and the curves hide it.) Keep log-softmax and sums in float32. "
        "Museum: sequence_logps_in_bf16.",
    ),
    Hunt(
        "hunt-6",
        "grpo",
        "the same seed as my colleague's, the same rewards at first, and not the same loss",
        (("group_relative_advantages(rewards, GROUP)", "group_relative_advantages(rewards, GROUP // 2)"),),
        "The advantages are normalised over pieces of half a group (here a wrong size; in the wild the mean and std of a "
        "micro-batch): two halves of one group get two baselines, and a half in which all are right teaches nothing although the "
        "group is mixed. Advantages belong to whole groups, before anything is cut into micro-batches. Museum: "
        "normalise_inside_the_micro_batch.",
    ),
    Hunt(
        "hunt-7",
        "grpo",
        "I sample a little cooler, and the reward is better from the first steps on",
        (
            (
                "torch.softmax(policy(ids).logits[:, -1], dim=-1)  # [G, V], at temperature 1",
                "torch.softmax(policy(ids).logits[:, -1] / 0.6, dim=-1)  # [G, V]",
            ),
        ),
        'Sampled at temperature 0.6, scored at 1: the tokens do not come from the policy whose log-probs are trained, so "on '
        'policy" is false from the first update, and the KL is estimated from the wrong samples (`kl_k1` would be far from `kl`). '
        "Score at the temperature of the rollout: token_logps(…, temperature=0.6). Preflight `sampler` refuses it. Museum: "
        "sample_at_a_temperature_and_score_without_it.",
    ),
    Hunt(
        "hunt-8",
        "grpo",
        "the reward rises as ever; but fewer tokens are trained than were sampled",
        (
            (
                "[([False] * len(p) + [True] * len(a) + [False] * width)[1:width] for p, a in answers]",
                "[([False] * len(p) + [True] * (len(a) - 1) + [False] * width)[1:width] for p, a in answers]",
            ),
        ),
        "The last sampled token, the end of the turn, gets no weight: ending is a decision of the policy like any other, and it is "
        "neither rewarded nor discouraged. Museum: completion_without_its_end_token.",
    ),
    Hunt(
        "hunt-9",
        "ppo",
        "the reward rises as it should, and after the eleventh rollout it is gone",
        (
            (
                "rewards = kl_shaped_rewards(old_logps.new_tensor(scores), old_logps, ref_logps, active, KL_COEF)",
                "rewards = kl_shaped_rewards(old_logps.new_tensor(scores), ref_logps, old_logps, active, KL_COEF)",
            ),
        ),
        "The two log-probs of the KL are swapped: every token is *paid* β (log π − log π_ref), so drifting earns. With a small β the "
        "score hides it, here for eleven rollouts. Museum: k1_reward_penalty_with_flipped_sign.",
    ),
    Hunt(
        "hunt-10",
        "ppo",
        "I whiten the advantages, as everybody does; the first losses are far from my colleague's",
        (
            (
                "advantages = whiten(advantages, active)",
                "advantages = torch.where(active, whiten(advantages, active) + advantages[active].mean(), 0.0)",
            ),
        ),
        "The mean is added back after whitening (`shift_mean=False` in public code): scaled, not centred. While the critic is young "
        "nearly all advantages are above 0, so whatever was sampled is made likelier, right or wrong. Museum: "
        "whiten_that_adds_the_mean_back.",
    ),
]
