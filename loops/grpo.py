"""Group relative policy optimisation: sample several answers to each prompt, reinforce those better than their group.

    python -m loops.grpo --config configs/grpo_tiny.yaml
    python -m loops.grpo --config configs/variants/dapo_tiny.yaml     # docs/grpo_variants.md: GSPO, MaxRL, a teacher …

1. Rollout: sample `group_size` answers to each of `prompts_per_step` prompts. Token in, token out. Reward every answer.
   With dynamic sampling, go on with further prompts until there are enough groups that teach something.
2. Advantage of an answer = its reward minus the group's mean, over the group's standard deviation.
3. Score the sampled tokens under the old policy and the frozen reference (the policy at step 0), no gradient. With a
   teacher under that, too: the advantage of a token is by how much likelier the teacher finds it.
4. One optimiser step = one minibatch of the rollout, in micro-batches. Count its tokens first, in all of them.
5. Forward and loss: the clipped surrogate (or GSPO's, or CISPO) plus β · KL. Backward. Preflight, once: sampler and
   trainer agree.
6. Clip, refuse NaN, update.
7. Log and evaluate: watch reward, dead groups, KL and length; the loss's value says nothing (losses/grpo.py). Keep a
   checkpoint, which holds the rollout too: a run resumed in the middle of one goes on at 4. Save at the end.

Left out: a value function (that is PPO), process rewards, asynchronous rollouts, an inference engine for sampling, a
reference that moves.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("grpo") if __name__ == "__main__" else None

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from losses.cispo import cispo_loss
from losses.grpo import grpo_loss
from losses.gspo import gspo_loss
from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import GrpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.reference import frozen_reference, gathers
from posttrain.models.sharded import gathered
from posttrain.models.teacher import load_grader
from posttrain.rollouts.answers import Answer, ask_all, in_flight, lay_out, sampled
from posttrain.rollouts.asking import Showcase
from posttrain.rollouts.crediting import about_groups, advantages_of, credited, taught, weigh
from posttrain.rollouts.filling import Filling
from posttrain.rollouts.sampling import sample_own
from posttrain.rollouts.scoring import Scorer, describe
from posttrain.run import preflight
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import stop_probability
from posttrain.tokens.examples import hold_out, prompts


class Start(NamedTuple):
    """What stands before the first step."""

    run: Run
    model: nn.Module
    tokenizer: Any
    policy: models.CompletionLogps
    reference: nn.Module | None
    teacher: nn.Module | None
    scorer: Scorer
    prompts: Any  # a list, or a stream
    validation: list
    showcase: Showcase


def start(config: GrpoConfig, run: Run, rows: list[dict] | None = None, reward: Any = None) -> Start:
    grpo, data = config.grpo, load_rows(config.data, "grpo", rows)
    scorer = Scorer(grpo, "grpo", reward, data, run)
    model, tokenizer, notes = models.load_policy(config.model, run)
    scorer.refuse_another_vocabulary(tokenizer)
    limit = models.max_length(model, config.data.max_length)
    encoded = prompts(data, tokenizer, limit, grpo.max_new_tokens, config.data, "grpo")
    items, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or sampler, policy and reference would disagree
    policy = run.parallel.spread(models.CompletionLogps(model.train()))
    run.share_prompts(policy)  # training.share_prompts: a group's prompt goes through the model once
    reference = frozen_reference(policy, config.model, run) if grpo.kl_coef > 0 else None
    teacher = load_grader(grpo.teacher, tokenizer, run) if grpo.teacher is not None else None
    run.checkpoints.remember("the reference", reference)
    run.checkpoints.remember("the teacher", teacher)
    run.checkpoints.remember("the reward", scorer.fingerprinted)
    showcase = Showcase(data, tokenizer, config.output.samples, limit, grpo.max_new_tokens)
    return Start(run, model, tokenizer, policy, reference, teacher, scorer, items, validation, showcase)


def roll_out(s: Start, policy: nn.Module, number: int, asked: list, own: list[int]) -> tuple[list[Answer], dict]:
    """The answers to this process's own prompts among those asked, each with its reward, and what to log."""
    run, grpo, tokenizer = s.run, s.run.config.grpo, s.tokenizer
    # ---- 1. Rollout -----------------------------------------------------------------------------------------------
    ids, seed, at_once = [prompt.ids for prompt in asked], run.training.seed, run.config.rollout.batch_rows
    with run.parallel.autocast(), gathered(policy):
        rollout = sample_own(s.model, tokenizer, ids, own, grpo, seed=seed, number=number, batch_rows=at_once)
    values, told = s.scorer(rollout, tokenizer, [asked[i] for i in own])
    answers = sampled(rollout, values)  # group by group
    told |= describe(torch.tensor(values) if s.scorer.scores else None, rollout) | about_groups(answers, grpo)
    if number == 0:
        preflight.dead_groups(run, told, grpo.mask_truncated)
    return answers, told


def credit(s: Start, policy: nn.Module, answers: list[Answer]) -> tuple[list[Answer], dict]:
    """These answers, with all that an update needs, and what to log."""
    run, grpo, told = s.run, s.run.config.grpo, {}
    # ---- 2. Advantages, over whole groups -------------------------------------------------------------------------
    if s.teacher is None:
        answers = credited(answers, advantages_of(answers, run))  # [N], each for all tokens of its answer
    if grpo.mask_truncated:
        answers = [a if a.finished else a.muted() for a in answers]

    # ---- 3. Old, reference and teacher log-probs, before anything moves -------------------------------------------
    pad_id, weighed = s.tokenizer.pad_token_id, grpo.importance_weights != "none"
    if s.reference is not None:
        with gathered(gathers(s.reference, policy)):
            answers = ask_all(answers, run, pad_id, lambda b: {"ref_logps": s.reference(b, grpo.temperature)[0]})
    if weighed or grpo.minibatches * grpo.inner_epochs > 1:  # else the old policy is the policy itself, detached
        with gathered(policy):
            answers = ask_all(answers, run, pad_id, lambda b: {"old_logps": policy(b, grpo.temperature)[0]})
    if s.teacher is not None:
        with gathered(s.teacher):
            answers = ask_all(answers, run, pad_id, lambda b: {"teacher_logps": s.teacher(b, grpo.temperature)[0]})
        answers, told = taught(answers)  # an advantage for each token
    if weighed:
        answers, more = weigh(answers, grpo)
        told |= more
    return answers, told


def loss_of(grpo: Any) -> Callable:
    """The loss that grpo.loss names, with the keys it has."""
    kl = {"kl_coef": grpo.kl_coef, "kl_estimator": grpo.kl_estimator}
    if grpo.loss == "cispo":
        return partial(cispo_loss, clip_high=grpo.clip_high, **kl)
    loss = gspo_loss if grpo.loss == "gspo" else grpo_loss
    return partial(loss, clip_low=grpo.clip_low, clip_high=grpo.clip_high, **kl)


@left_as_found()
def train(
    config: GrpoConfig, *, rows: list[dict] | None = None, reward: Callable | list[Callable] | None = None
) -> Result:
    """Run it; `rows` (prompt and columns for the reward) replaces config.data.name, `reward` replaces
    config.grpo.reward."""
    run, grpo = Run(config), config.grpo
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    s = start(config, run, rows, reward)
    model, tokenizer, accelerator = s.model, s.tokenizer, run.accelerator
    pad_id, stops = tokenizer.pad_token_id, template.stop_ids(tokenizer)
    with gathered(s.policy):
        before = s.showcase.answers(model)
    policy, optimizer, scheduler = run.prepare(s.policy, model, tokenizer, run.steps_for_prompts(s.prompts, grpo))
    suites.before()
    policy_loss, filling = loss_of(grpo), Filling(run, grpo)

    for number, asked, own in run.prompt_windows(s.prompts, grpo.prompts_per_step):
        saved = run.checkpoints.in_flight()  # resumed in the middle of this rollout: steps 1 to 3 are done
        if saved is None:
            answers, told = roll_out(s, policy, number, asked, own)
            if grpo.dynamic_sampling:
                if not filling.add(answers, told, own, len(asked)):
                    continue  # with the next prompts
                answers, told = filling.take(own, len(asked))
            answers, more = credit(s, policy, answers)
            told |= more
        else:
            answers, told = in_flight(saved, own), saved["metrics"]

        # ---- 4. One optimiser step = one minibatch ----------------------------------------------------------------
        for window in run.minibatches(answers, own, len(asked), grpo):
            lengths = (answer.example.num_active for micro in window for answer in micro)
            total = run.sum_over_processes(step_total(lengths, grpo.length_weighting, longest=grpo.max_new_tokens))
            for i, micro in enumerate(window):
                # ---- 5. Forward and loss --------------------------------------------------------------------------
                batch = lay_out(micro, pad_id, run.sharing).to(run.device)
                weights = token_weights(batch.active, grpo.length_weighting, total=total)  # [B, T]
                with run.no_sync_unless_last(policy, i, window):
                    logps, entropy = policy(batch, grpo.temperature)  # [B, T]
                    old = batch["old_logps"] if grpo.minibatches * grpo.inner_epochs > 1 else logps.detach()
                    ref = None if s.reference is None else batch["ref_logps"]
                    loss, metrics = policy_loss(logps, old, batch["advantages"], weights, ref_logps=ref)
                    accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
                if run.step == 0:
                    preflight.sampler(run, logps.detach(), batch["sampler_logps"], entropy, batch.active)
                metrics |= {"entropy": (entropy.sum(), batch.active.sum())}
                metrics |= {"p_stop": stop_probability(logps, batch, stops)}
                run.add(loss, metrics, tokens=sum(map(len, micro)))

            # ---- 6. Update ----------------------------------------------------------------------------------------
            grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
            run.check_update(grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

            # ---- 7. Log, evaluate, keep a checkpoint --------------------------------------------------------------
            held_out = {}
            if run.evaluate_now():
                with gathered(policy):
                    held_out = s.scorer.held_out(model, s.validation, grpo, tokenizer, run)
            run.log({"grad_norm": grad_norm} | held_out | suites.due(), told)
            if run.checkpoints.due():
                run.checkpoints.write(run.rollout_state(answers, own, told))

    with gathered(policy):
        after = s.showcase.answers(model)
    return run.finish(s.showcase.compare(before, after))


if __name__ == "__main__":
    with clear_exit():
        train(config)
