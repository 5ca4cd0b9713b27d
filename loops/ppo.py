"""Proximal policy optimisation: sample answers, score them, and let a learned value of every token say what was better
than expected.

    python -m loops.ppo --config configs/ppo_tiny.yaml
    python -m loops.ppo --config configs/ppo_tiny.yaml --ppo.reward_model outputs/reward_tiny/model --ppo.reward null

1. Rollout: one sampled answer to each of `prompts_per_step` prompts. Token in, token out.
2. Score every answer, by a reward model or a verifiable reward; an answer that was cut off counts its ending once.
3. Before anything moves: the policy's log-probs, the critic's values, the frozen reference's log-probs.
4. Rewards per token: − β · (log π − log π_ref), the score at the last. GAE makes advantages and returns; whiten over
   all.
5. One optimiser step = one minibatch, in micro-batches; count its tokens first. Clipped policy loss + value loss.
   Backward. Preflight on the first step: sampler and trainer agree.
6. Clip, refuse NaN, update.
7. Log and evaluate: reward, KL, explained variance, and what is only watched. Adapt β. Keep a checkpoint,
   which holds the rollout too: a run resumed in the middle of one goes on at 5. Save the policy at the end.

PPO beside GRPO (loops/grpo.py), step by step:
1. one answer per prompt                     GRPO: a group of them
2. the score of the answer                   the same
3. a second network, the critic, is asked    GRPO has none
4. A_t = GAE(rewards, values), per token     GRPO: (r − mean of the group) / std, the same for all tokens of an answer
   KL paid in the reward, token by token     GRPO: KL as a term of the loss, another gradient (losses/kl.py)
5. clipped ratio, and a clipped value loss   GRPO: clipped ratio, and the KL term
So PPO can tell a good step within an answer from a bad one, if its critic has learned to; GRPO needs no critic to
learn.

Left out: an entropy bonus, a reward model in an ensemble, value pretraining, asynchronous rollouts; the critic is saved
in checkpoints only.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("ppo") if __name__ == "__main__" else None

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.gae import Stats, explained_variance, gae, kl_shaped_rewards, whiten, whitening_stats
from losses.kl import adapted_coef
from losses.ppo import ppo_policy_loss, ppo_value_loss
from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import PpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.reference import frozen_reference, gathers
from posttrain.models.scalar import ActorCritic, CompletionScores, load_scorer
from posttrain.models.sharded import gathered
from posttrain.rollouts.answers import Answer, ask_all, in_flight, lay_out, mean_gap, sampled
from posttrain.rollouts.asking import Showcase
from posttrain.rollouts.sampling import sample_own
from posttrain.rollouts.scoring import Scorer, describe, end_once
from posttrain.run import preflight
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import Batch, stop_probability
from posttrain.tokens.examples import hold_out, prompts


class Start(NamedTuple):
    """What stands before the first step."""

    run: Run
    model: nn.Module
    tokenizer: Any
    actor_critic: ActorCritic
    reference: nn.Module | None
    scorer: Scorer
    prompts: Any  # a list, or a stream
    validation: list
    showcase: Showcase


def start(config: PpoConfig, run: Run, rows: list[dict] | None = None, reward: Any = None) -> Start:
    ppo, data = config.ppo, load_rows(config.data, "ppo", rows)
    scorer = Scorer(ppo, "ppo", reward, data, run)
    model, tokenizer, notes = models.load_policy(config.model, run)
    scorer.refuse_another_vocabulary(tokenizer)
    limit = models.max_length(model, config.data.max_length)
    encoded = prompts(data, tokenizer, limit, ppo.max_new_tokens, config.data, "ppo")
    items, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or sampler, policy and reference would disagree
    policy, critic = models.CompletionLogps(model.train()), None
    if ppo.critic == "separate":  # else a value head on the policy's backbone
        critic_model, _, _ = load_scorer(config.model, run)
        models.no_dropout(critic_model)
        critic = CompletionScores(critic_model.train())
    actor_critic = run.parallel.spread(ActorCritic(policy, critic))
    reference = frozen_reference(policy, config.model, run) if ppo.kl_coef + ppo.kl_loss_coef > 0 else None
    run.checkpoints.remember("the reference", reference)
    run.checkpoints.remember("the reward", scorer.fingerprinted)
    showcase = Showcase(data, tokenizer, config.output.samples, limit, ppo.max_new_tokens)
    return Start(run, model, tokenizer, actor_critic, reference, scorer, items, validation, showcase)


def roll_out(
    s: Start, actor_critic: nn.Module, number: int, asked: list, own: list[int], kl_coef: float
) -> tuple[list[Answer], dict, float]:
    """One answer to each of this process's own prompts among those asked, with all that an update needs; what to log;
    and how much of the returns' variance the critic explained."""
    run, ppo, tokenizer = s.run, s.run.config.ppo, s.tokenizer
    # ---- 1. Rollout -----------------------------------------------------------------------------------------------
    ids, seed, at_once = [prompt.ids for prompt in asked], run.training.seed, run.config.rollout.batch_rows
    with run.parallel.autocast(), gathered(actor_critic):
        rollout = sample_own(s.model, tokenizer, ids, own, ppo, seed=seed, number=number, batch_rows=at_once)

    # ---- 2. Score; a truncated answer counts its ending once ------------------------------------------------------
    values, told = s.scorer(rollout, tokenizer, [asked[i] for i in own])
    scores, goes_on = end_once(values, rollout.finished, ppo)
    told |= describe(scores, rollout)
    if number == 0:
        preflight.unfinished(run, run.sum_over_processes(sum(rollout.finished)))

    # ---- 3. What policy, critic and reference say of it, before anything moves ------------------------------------
    def look(batch: Batch) -> dict[str, Tensor]:
        logps, _, values = actor_critic(batch, ppo.temperature)  # [B, T], [B, T], [B, S]: the value after token t
        return {"old_logps": logps, "values": values[:, :-1], "values_after": values[:, 1:]}

    pad_id = tokenizer.pad_token_id
    with gathered(actor_critic):
        answers = ask_all(sampled(rollout, values), run, pad_id, look)
    if s.reference is not None:
        with gathered(gathers(s.reference, actor_critic)):
            answers = ask_all(answers, run, pad_id, lambda b: {"ref_logps": s.reference(b, ppo.temperature)[0]})

    # ---- 4. Rewards per token, advantages and returns -------------------------------------------------------------
    answers, explained = credit(answers, scores, goes_on, kl_coef, run)
    return answers, told, explained


def credit(
    answers: list[Answer], scores: Tensor, goes_on: list[bool], kl_coef: float, run: Run
) -> tuple[list[Answer], float]:
    """What each token is to be credited with, whitened over the whole rollout of all processes; and how good the values
    were."""
    ppo, batch = run.config.ppo, lay_out(answers, pad_id=0)  # [B, T]

    def over_all(x: Tensor) -> Stats:
        return tuple(run.sum_over_processes(part) for part in whitening_stats(x, batch.active))

    ref_logps = batch["ref_logps"] if kl_coef > 0 else batch["old_logps"]  # no KL to pay: there may be no reference
    rewards = kl_shaped_rewards(scores, batch["old_logps"], ref_logps, batch.active, kl_coef)  # [B, T]
    after = torch.stack([a.columns["values_after"][-1] for a in answers])  # [B]
    bootstrap = torch.where(torch.tensor(goes_on), after, 0.0)
    advantages, returns = gae(rewards, batch["values"], batch.active, gamma=ppo.gamma, lam=ppo.lam, bootstrap=bootstrap)
    explained = explained_variance(over_all(returns), over_all(returns - batch["values"]))
    if ppo.whiten:
        advantages = whiten(advantages, batch.active, stats=over_all(advantages))
    answers = [
        a.with_columns({"advantages": advantages[i][batch.active[i]], "returns": returns[i][batch.active[i]]})
        for i, a in enumerate(answers)
    ]
    return answers, explained


@left_as_found()
def train(
    config: PpoConfig, *, rows: list[dict] | None = None, reward: Callable | list[Callable] | None = None
) -> Result:
    """Run it; `rows` (prompt and columns for the reward) replaces config.data.name, `reward` replaces
    config.ppo.reward."""
    run, ppo = Run(config), config.ppo
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    s = start(config, run, rows, reward)
    model, tokenizer, accelerator = s.model, s.tokenizer, run.accelerator
    pad_id, stops, actor_critic = tokenizer.pad_token_id, template.stop_ids(tokenizer), s.actor_critic
    with gathered(actor_critic):
        before = s.showcase.answers(model)
    networks = {"grad_norm": actor_critic}
    if actor_critic.critic is not None:
        networks = {"grad_norm": actor_critic.policy, "critic_grad_norm": actor_critic.critic}
    # of parameters whose names begin so: a critic of its own, or a value head on the policy's backbone
    rates = dict.fromkeys(("critic.", "head."), ppo.critic_learning_rate or config.training.learning_rate)
    num_steps = run.steps_for_prompts(s.prompts, ppo)
    actor_critic, optimizer, scheduler = run.prepare(actor_critic, model, tokenizer, num_steps, learning_rates=rates)
    suites.before()
    kl_coef, kl_loss_coef = ppo.kl_coef, ppo.kl_loss_coef  # in the reward, or in the loss: never both

    for number, asked, own in run.prompt_windows(s.prompts, ppo.prompts_per_step):
        saved = run.checkpoints.in_flight()  # resumed in the middle of this rollout: steps 1 to 4 are done
        if saved is None:
            answers, told, explained = roll_out(s, actor_critic, number, asked, own, kl_coef)
        else:
            answers, told, explained = in_flight(saved, own), saved["metrics"], saved["explained_variance"]
            kl_coef, kl_loss_coef = saved["kl_coef"], saved["kl_loss_coef"]

        # ---- 5. One optimiser step = one minibatch ----------------------------------------------------------------
        for window in run.minibatches(answers, own, len(asked), ppo):
            total = run.sum_over_processes(step_total(a.example.num_active for micro in window for a in micro))
            for i, micro in enumerate(window):
                batch = lay_out(micro, pad_id).to(run.device)
                weights = token_weights(batch.active, "token", total=total)  # [B, T]
                with run.no_sync_unless_last(actor_critic, i, window):
                    logps, entropy, values = actor_critic(batch, ppo.temperature)  # [B, T], [B, T], [B, S]
                    policy_loss, metrics = ppo_policy_loss(
                        logps,
                        batch["old_logps"],
                        batch["advantages"],
                        weights,
                        clip_eps=ppo.clip_eps,
                        ref_logps=None if s.reference is None else batch["ref_logps"],
                        kl_coef=kl_loss_coef,
                    )
                    value_loss, value_metrics = ppo_value_loss(
                        values[:, :-1], batch["values"], batch["returns"], weights, clip_eps=ppo.value_clip_eps
                    )
                    loss = policy_loss + ppo.value_coef * value_loss
                    accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
                if run.step == 0:
                    preflight.sampler(run, logps.detach(), batch["sampler_logps"], entropy, batch.active)
                metrics |= value_metrics | {
                    "entropy": (entropy.sum(), batch.active.sum()),
                    "p_stop": stop_probability(logps, batch, stops),
                }
                terms = {"policy_loss": policy_loss, "value_loss": value_loss}
                run.add(loss, metrics, terms=terms, tokens=sum(map(len, micro)))

            # ---- 6. Update ----------------------------------------------------------------------------------------
            # each network by its own norm: the value loss grows with the reward's scale, the policy's does not
            limit = config.training.max_grad_norm
            norms = {name: accelerator.clip_grad_norm_(part.parameters(), limit) for name, part in networks.items()}
            run.check_update(sum(norms.values()))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

            # ---- 7. Log, evaluate, keep a checkpoint --------------------------------------------------------------
            held_out = {}
            if run.evaluate_now():
                with gathered(actor_critic):
                    held_out = s.scorer.held_out(model, s.validation, ppo, tokenizer, run)
            coef = {} if s.reference is None else {"kl_coef": kl_coef + kl_loss_coef}
            run.log(norms | {"explained_variance": explained} | coef | held_out | suites.due(), told)
            if run.checkpoints.due():
                state = {"explained_variance": explained, "kl_coef": kl_coef, "kl_loss_coef": kl_loss_coef}
                run.checkpoints.write(run.rollout_state(answers, own, told) | state)

        if ppo.kl_target is not None:
            kl = mean_gap(answers, "old_logps", "ref_logps", run)  # k1, over the whole rollout
            kl_coef, kl_loss_coef = (adapted_coef(coef, kl, ppo.kl_target) for coef in (kl_coef, kl_loss_coef))

    with gathered(actor_critic):
        after = s.showcase.answers(model)
    return run.finish(s.showcase.compare(before, after))


if __name__ == "__main__":
    with clear_exit():
        train(config)
