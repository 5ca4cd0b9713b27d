"""Proximal policy optimisation: sample answers, score them, and let a learned value of every token say what was better than expected.

    python -m loops.ppo --config configs/ppo_tiny.yaml
    python -m loops.ppo --config configs/ppo_tiny.yaml --ppo.reward_model outputs/reward_tiny/model --ppo.reward null --ppo.watch answer

1. Rollout: one sampled answer to each of `prompts_per_step` prompts. Token in, token out.
2. Score every answer, by a reward model or a verifiable reward; an answer that was cut off counts its ending once.
3. Before anything moves: the policy's log-probs, the critic's values, the frozen reference's log-probs.
4. Rewards per token: − β · (log π − log π_ref), the score at the last. GAE makes advantages and returns; whiten over all.
5. One optimiser step = one minibatch, in micro-batches; count its tokens first. Clipped policy loss + value loss. Backward.
6. Preflight at the first rollout (sampler and trainer must agree). Clip, refuse NaN, update.
7. Log and evaluate: reward, KL, explained variance, and what is only watched. Adapt β. Keep a checkpoint,
   which holds the rollout too: a run resumed in the middle of one goes on at 5. Save the policy at the end.

PPO beside GRPO (loops/grpo.py), step by step:
1. one answer per prompt                     GRPO: a group of them
2. the score of the answer                   the same
3. a second network, the critic, is asked    GRPO has none
4. A_t = GAE(rewards, values), per token     GRPO: (r − mean of the group) / std, the same for all tokens of an answer
   KL paid in the reward, token by token     GRPO: KL as a term of the loss
5. clipped ratio, and a clipped value loss   GRPO: clipped ratio, and the KL term
So PPO can tell a good step within an answer from a bad one, if its critic has learned to; GRPO needs no critic to learn.

Left out: an entropy bonus, a reward model in an ensemble, value pretraining, asynchronous rollouts; the critic is saved in checkpoints only.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("ppo") if __name__ == "__main__" else None

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from losses.advantages import gae, kl_shaped_rewards, whiten, whitening_stats
from losses.kl import k1, k3, k3_is
from losses.ppo import ppo_policy_loss, ppo_value_loss
from losses.weights import token_weights
from posttrain import models
from posttrain.config import PpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.models import scalar
from posttrain.models.critic import ActorCritic
from posttrain.models.reference import frozen_reference
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase, ask
from posttrain.rollouts.sampling import Rollout, draw_uniforms, sample
from posttrain.rollouts.scoring import Judge
from posttrain.run import preflight
from posttrain.run.training import Result, Run
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate, pad_values, stop_probability
from posttrain.tokens.examples import hold_out, prompts


@dataclass(frozen=True)
class Answer:
    """One sampled completion on its way through an update. Each tensor has one entry per completion token."""

    example: Example
    sampler_logps: torch.Tensor
    old_logps: torch.Tensor | None = None  # the policy's before the update: what the ratio is to
    ref_logps: torch.Tensor | None = None
    values: torch.Tensor | None = None  # the critic's, of the state before each token
    value_after: float = 0.0  # and of the state after the last one
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.example)

    def muted(self) -> "Answer":
        return replace(self, example=self.example.muted())

    @classmethod
    def restored(cls, saved: dict) -> "Answer":
        """From a checkpoint."""
        return cls(**saved | {"example": Example(**saved["example"])})


def train(
    config: PpoConfig, *, rows: list[dict] | None = None, reward: Callable | list[Callable] | None = None
) -> Result:
    """Run it; `rows` (prompt and columns for the reward) replaces config.data.name, `reward` replaces config.ppo.reward."""
    data = load_rows(config.data, "ppo", rows)
    run, ppo = Run(config), config.ppo
    judge = Judge(ppo, reward, data, run.device, config.training.micro_batch_size)
    accelerator, max_grad_norm = run.accelerator, config.training.max_grad_norm
    model, tokenizer, notes = models.load_policy(config.model, run)
    judge.refuse_another_vocabulary(tokenizer)
    limit = models.max_length(model, config.data.max_length)
    encoded = prompts(data, tokenizer, limit, ppo.max_new_tokens, config.data, "ppo")
    items, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or sampler, policy and reference would disagree
    policy = models.CompletionLogps(model.train())
    kl_coef, kl_loss_coef = ppo.kl_coef, ppo.kl_loss_coef  # in the reward, or in the loss: never both
    reference = frozen_reference(policy, config.model, run.compute) if kl_coef + kl_loss_coef > 0 else None
    run.checkpoints.remember("the reference", reference)
    run.checkpoints.remember("the reward", judge.scorer or judge.functions)
    critic = None
    if ppo.critic == "separate":
        critic_model, _, _ = scalar.load_scorer(config.model, run)
        models.no_dropout(critic_model)
        critic = scalar.CompletionScores(critic_model.train())
    pad_id, stops = tokenizer.pad_token_id, template.stop_ids(tokenizer)
    showcase = Showcase(data, tokenizer, config.output.samples, limit, ppo.max_new_tokens)
    before = showcase.answers(model)
    critic_rate = ppo.critic_learning_rate or config.training.learning_rate
    both = ActorCritic(policy, critic)
    networks = {"grad_norm": both if critic is None else policy} | (
        {} if critic is None else {"critic_grad_norm": critic}
    )
    both, optimizer, scheduler = run.prepare(
        both, run.steps_for_prompts(items, ppo), {"critic.": critic_rate, "head.": critic_rate}
    )

    for rollout_number, chosen, mine in run.prompt_windows(items, ppo.prompts_per_step):
        in_flight = run.checkpoints.in_flight()  # resumed in the middle of this rollout: steps 1 to 4 are done
        if in_flight is not None:
            answers = [Answer.restored(a) for prompt in mine for a in in_flight["answers"][prompt]]
            rollout_metrics = in_flight["metrics"]
            about_values, kl_coef, kl_loss_coef = (
                in_flight[name] for name in ("about_values", "kl_coef", "kl_loss_coef")
            )
        else:
            # ---- 1. Rollout: this process's prompts, its rows of the uniforms of the whole rollout --------------------
            uniforms = draw_uniforms(len(chosen), ppo.max_new_tokens, seed=config.training.seed, step=rollout_number)
            with accelerator.autocast(), gathered(both):
                rollout = sample(
                    model,
                    [chosen[i].ids for i in mine],
                    max_new_tokens=ppo.max_new_tokens,
                    temperature=ppo.temperature,
                    stop_ids=stops,
                    pad_id=pad_id,
                    uniforms=uniforms[mine],
                )

            # ---- 2. Score; a truncated answer counts its ending once ----------------------------------------------
            raw_scores, rollout_metrics = judge(rollout, tokenizer, [chosen[i] for i in mine])
            scores, bootstraps = end_once(raw_scores, rollout.finished, ppo)

            # ---- 3. What policy, critic and reference say of it, before anything moves ----------------------------
            answers = [Answer(e, logps) for e, logps in zip(rollout.examples(), rollout.logps, strict=True)]
            with gathered(both):
                answers = look(answers, both, reference, run, pad_id, ppo.temperature)
            if run.step == 0:
                check_the_sampler(answers, pad_id, run)

            # ---- 4. Rewards per token, advantages and returns, whitened over the whole rollout --------------------
            answers, about_values = credit(answers, scores, bootstraps, kl_coef, ppo, run, pad_id)
            rollout_metrics |= describe(scores, rollout)

        # ---- 5. One optimiser step = one minibatch ----------------------------------------------------------------
        for window in run.minibatches(answers, mine, len(chosen), ppo, rollout_number):
            total = run.sum_over_processes(sum(a.example.num_active for micro in window for a in micro))
            for i, micro in enumerate(window):
                examples = [a.example for a in micro]
                batch = collate(examples, pad_id).to(run.device)
                width = batch.input_ids.shape[1]
                old_logps, old_values, advantages, returns = (
                    pad_values([getattr(a, name) for a in micro], examples, width).to(run.device)
                    for name in ("old_logps", "values", "advantages", "returns")
                )
                weights = token_weights(batch.active, "token", total=total)  # [B, T]
                with run.no_sync_unless_last(both, i, window):
                    logps, entropy, values = both(batch, ppo.temperature)  # [B, T], [B, T], [B, S]
                    policy_loss, metrics = ppo_policy_loss(logps, old_logps, advantages, weights, clip_eps=ppo.clip_eps)
                    value_loss, value_metrics = ppo_value_loss(
                        values[:, :-1], old_values, returns, weights, clip_eps=ppo.value_clip_eps
                    )
                    loss = policy_loss + ppo.value_coef * value_loss
                    if reference is not None:
                        ref_logps = pad_values([a.ref_logps for a in micro], examples, width).to(run.device)
                        metrics |= kl_metrics(logps, ref_logps, batch.active)
                        if kl_loss_coef > 0:
                            loss = loss + kl_loss_coef * (weights * k3_is(logps, ref_logps, old_logps)).sum()
                    accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
                metrics |= value_metrics | {
                    "entropy": (entropy.sum(), batch.active.sum()),
                    "p_stop": stop_probability(logps, batch, stops),
                }
                for name, part in (("policy_loss", policy_loss), ("value_loss", value_loss)):
                    metrics[name] = (part.detach(), float(i == 0) / accelerator.num_processes)  # sums, like the loss
                run.add(loss, metrics, tokens=sum(map(len, micro)))

            # ---- 6. Update ----------------------------------------------------------------------------------------
            # each network by its own norm: the value loss grows with the reward's scale, the policy's does not
            norms = {
                name: accelerator.clip_grad_norm_(part.parameters(), max_grad_norm) for name, part in networks.items()
            }
            run.refuse_non_finite(sum(norms.values()))
            if run.step == 0:
                preflight.gradients(run, both)
                preflight.stop_token(run, model, tokenizer)
            learning_rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

            # ---- 7. Log, evaluate, keep a checkpoint --------------------------------------------------------------
            held_out = {}
            if run.evaluate_now():
                with gathered(both):
                    held_out = evaluate(model, validation, judge, ppo, tokenizer, run)
            run.add(None, rollout_metrics)
            coefs = {"kl_coef": kl_coef + kl_loss_coef} if reference is not None else {}
            run.log(norms | {"learning_rate": learning_rate} | about_values | coefs | held_out)
            if run.checkpoints.due():
                state = {"about_values": about_values, "kl_coef": kl_coef, "kl_loss_coef": kl_loss_coef}
                run.checkpoints.write(model, tokenizer, run.rollout_state(answers, mine, rollout_metrics) | state)

        if (
            ppo.kl_target is not None
        ):  # Ziegler et al. 2019, eq. 4: by a tenth of the relative error, at most 2 % a rollout
            error = min(max(rollout_kl(answers, run) / ppo.kl_target - 1, -0.2), 0.2)
            kl_coef, kl_loss_coef = kl_coef * (1 + 0.1 * error), kl_loss_coef * (1 + 0.1 * error)

    with gathered(both):
        after = showcase.answers(model)
    return run.finish(model, tokenizer, showcase.compare(before, after))


def end_once(scores: list[float], finished: list[bool], ppo) -> tuple[torch.Tensor, list[bool]]:
    """(score of each answer, whether the value of its last state follows). Finished: its score, and nothing follows.

    Cut off: either it is scored, or given the fixed penalty, and nothing follows; or it has no score, and the critic says
    what would have come. Never both, or its ending would be paid twice."""
    if ppo.truncated == "bootstrap":
        return torch.tensor([s if done else 0.0 for s, done in zip(scores, finished, strict=True)]), [
            not done for done in finished
        ]
    penalty = ppo.truncation_penalty
    ended = [s if done or penalty is None else penalty for s, done in zip(scores, finished, strict=True)]
    return torch.tensor(ended), [False] * len(scores)


@torch.no_grad()
def look(answers: list[Answer], both, reference, run: Run, pad_id: int, temperature: float) -> list[Answer]:
    """Fill in old_logps, values and ref_logps: one forward each over this process's answers."""
    out, size = list(answers), run.training.micro_batch_size
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]), reverse=True)
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        batch = collate([answers[i].example for i in picked], pad_id).to(run.device)
        with run.accelerator.autocast():
            logps, _, values = both(batch, temperature)
            ref_logps = reference(batch, temperature)[0] if reference is not None else None
        for row, i in enumerate(picked):
            on = batch.active[row]
            out[i] = replace(
                answers[i],
                old_logps=logps[row][on].float().cpu(),
                values=values[row, :-1][on].float().cpu(),
                value_after=values[row, len(answers[i]) - 1].item(),
                ref_logps=None if ref_logps is None else ref_logps[row][on].float().cpu(),
            )
    return out


def credit(
    answers: list[Answer], scores: torch.Tensor, bootstraps: list[bool], kl_coef: float, ppo, run: Run, pad_id: int
) -> tuple[list[Answer], dict[str, float]]:
    """Rewards per token, GAE, whitening with the statistics of the whole rollout (all processes); and how good the values were."""
    examples = [a.example for a in answers]
    batch = collate(examples, pad_id)
    width = batch.input_ids.shape[1]
    old, values = (pad_values([getattr(a, n) for a in answers], examples, width) for n in ("old_logps", "values"))
    ref = old if answers[0].ref_logps is None else pad_values([a.ref_logps for a in answers], examples, width)
    rewards_per_token = kl_shaped_rewards(scores, old, ref, batch.active, kl_coef)  # [B, T]
    after = torch.tensor([a.value_after if b else 0.0 for a, b in zip(answers, bootstraps, strict=True)])
    advantages, returns = gae(rewards_per_token, values, batch.active, gamma=ppo.gamma, lam=ppo.lam, bootstrap=after)

    def over_all(x: torch.Tensor) -> tuple[float, float, float]:
        return tuple(run.sum_over_processes(part) for part in whitening_stats(x, batch.active))

    def variance(x: torch.Tensor) -> float:
        total, squares, count = over_all(x)
        return squares / count - (total / count) ** 2

    # 1 − Var(return − value) / Var(return): 1 is a perfect critic, 0 one that knows only the mean
    spread = variance(returns)
    explained = 1 - variance(returns - values) / spread if spread > 1e-12 else 0.0
    if ppo.whiten:
        advantages = whiten(advantages, batch.active, stats=over_all(advantages))
    filled = [
        replace(a, advantages=advantages[i][batch.active[i]], returns=returns[i][batch.active[i]])
        for i, a in enumerate(answers)
    ]
    return filled, {"explained_variance": explained}


def describe(scores: torch.Tensor, rollout: Rollout) -> dict[str, tuple]:
    """What to watch, as (sum, count)."""
    n = len(scores)
    return {
        "reward": (scores.sum(), n),
        "completion_length": (sum(map(len, rollout.completion_ids)), n),
        "finished": (sum(rollout.finished), n),
    }


def kl_metrics(logps: torch.Tensor, ref_logps: torch.Tensor, active: torch.Tensor) -> dict[str, tuple]:
    """KL to the reference per token, by two estimators (losses/kl.py)."""
    both = (("kl", k3), ("kl_k1", k1))
    return {
        name: (torch.where(active, estimate(logps, ref_logps).detach(), 0.0).sum(), active.sum())
        for name, estimate in both
    }


def rollout_kl(answers: list[Answer], run: Run) -> float:
    """Mean k1 per token over the whole rollout: what the adaptive coefficient steers by."""
    gap = sum((a.old_logps - a.ref_logps).sum().item() for a in answers)
    count = sum(a.example.num_active for a in answers)
    return run.sum_over_processes(gap) / run.sum_over_processes(count)


def check_the_sampler(answers: list[Answer], pad_id: int, run: Run) -> None:
    examples = [a.example for a in answers]
    batch = collate(examples, pad_id)
    old, said = (
        pad_values([getattr(a, name) for a in answers], examples, batch.input_ids.shape[1])
        for name in ("old_logps", "sampler_logps")
    )
    preflight.sampler(run, old, said, batch.active)


def evaluate(model, validation: list, judge: Judge, ppo, tokenizer, run: Run) -> dict[str, float]:
    """Mean score (and watched rewards) of one greedy answer to each held-out prompt."""
    mine = validation[run.accelerator.process_index :: run.accelerator.num_processes]
    names = ["reward_held_out", *(f"watched/{f.__name__}" for f in judge.watched)]
    sums = dict.fromkeys(names, 0.0)
    if mine:  # more processes than prompts: some have nothing to ask, and add 0
        with run.accelerator.autocast():
            rollout = ask(model, tokenizer, [p.ids for p in mine], max_new_tokens=ppo.max_new_tokens)
        scores, metrics = judge(rollout, tokenizer, mine)
        sums |= {"reward_held_out": sum(scores)} | {n: metrics[n][0] for n in names[1:]}
    return {
        name if name == "reward_held_out" else f"{name}_held_out": run.sum_over_processes(value) / len(validation)
        for name, value in sums.items()
    }


if __name__ == "__main__":
    with clear_exit():
        train(config)
