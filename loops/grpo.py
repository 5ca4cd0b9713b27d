"""Group relative policy optimisation: sample several answers to each prompt, reinforce those better than their group.

    python -m loops.grpo --config configs/grpo_tiny.yaml
    python -m loops.grpo --config configs/grpo_tiny.yaml --grpo.inner_epochs 2 --grpo.clip_high 0.28

1. Rollout: sample `group_size` answers to each of `prompts_per_step` prompts. Token in, token out.
2. Reward every answer; advantage = reward minus the group's mean, over the group's standard deviation.
3. Score the sampled tokens under the old policy and the frozen reference (the policy at step 0), no gradient.
4. One optimiser step = one minibatch of the rollout, in micro-batches. Count its tokens first, in all of them.
5. Forward and loss: the clipped surrogate plus β · KL. Backward.
6. Preflight on the first step (sampler and trainer must agree). Clip, refuse NaN, update.
7. Log and evaluate: watch reward, dead groups, KL and length; the loss's value says nothing (losses/grpo.py). Keep a
   checkpoint, which holds the rollout too: a run resumed in the middle of one goes on at 4. Save at the end.

Left out: a value function (that is PPO), process rewards, asynchronous rollouts, an inference engine for sampling,
resampling of dead groups (DAPO's dynamic sampling), a reference that moves.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("grpo") if __name__ == "__main__" else None

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from losses.advantages import group_relative_advantages, leave_one_out_advantages
from losses.grpo import grpo_loss
from losses.weights import token_weights
from posttrain import models
from posttrain.config import GrpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.models.reference import frozen_reference
from posttrain.models.sharded import gathered
from posttrain.rollouts import rewards
from posttrain.rollouts.asking import Showcase, ask
from posttrain.rollouts.sampling import Rollout, draw_uniforms, sample
from posttrain.run import preflight
from posttrain.run.training import Result, Run
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate, pad_values, stop_probability
from posttrain.tokens.examples import Prompt, hold_out, prompts


@dataclass(frozen=True)
class Answer:
    """One sampled completion on its way through an update. Each log-prob tensor has one entry per completion token."""

    example: Example
    advantage: float
    sampler_logps: torch.Tensor  # what the sampler gave its own tokens
    old_logps: torch.Tensor | None = (
        None  # the trainer's forward before the first inner epoch; None: one update per rollout, so logps.detach()
    )
    ref_logps: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.example)

    def muted(self) -> "Answer":
        return replace(self, example=self.example.muted())

    @classmethod
    def restored(cls, saved: dict) -> "Answer":
        """From a checkpoint."""
        return cls(**saved | {"example": Example(**saved["example"])})


def train(
    config: GrpoConfig, *, rows: list[dict] | None = None, reward: Callable | list[Callable] | None = None
) -> Result:
    """Run it; `rows` (prompt and columns for the reward) replaces config.data.name, `reward` replaces config.grpo.reward."""
    data = load_rows(config.data, "grpo", rows)
    functions = rewards.find(config.grpo.reward if reward is None else reward, config.grpo.reward_weights)
    rewards.refuse_bad_targets(functions, data)
    run, grpo = Run(config), config.grpo
    accelerator, max_grad_norm = run.accelerator, config.training.max_grad_norm
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = prompts(data, tokenizer, limit, grpo.max_new_tokens, config.data, "grpo")
    items, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or sampler, policy and reference would disagree
    policy = models.CompletionLogps(model.train())
    reference = frozen_reference(policy, config.model, run.compute) if grpo.kl_coef > 0 else None
    run.checkpoints.remember("the reference", reference)
    run.checkpoints.remember("the reward functions", functions)
    pad_id, stops = tokenizer.pad_token_id, template.stop_ids(tokenizer)
    showcase = Showcase(data, tokenizer, config.output.samples, limit, grpo.max_new_tokens)
    before = showcase.answers(model)
    updates_per_rollout = grpo.minibatches * grpo.inner_epochs
    policy, optimizer, scheduler = run.prepare(policy, run.steps_for_prompts(items, grpo))

    for rollout_number, chosen, mine in run.prompt_windows(items, grpo.prompts_per_step):
        in_flight = run.checkpoints.in_flight()  # resumed in the middle of this rollout: steps 1 to 3 are done
        if in_flight is not None:
            answers = [Answer.restored(a) for prompt in mine for a in in_flight["answers"][prompt]]
            rollout_metrics = in_flight["metrics"]
        else:
            # ---- 1. Rollout: this process's prompts, its rows of the uniforms of the whole rollout --------------------
            uniforms = draw_uniforms(
                len(chosen) * grpo.group_size, grpo.max_new_tokens, seed=config.training.seed, step=rollout_number
            )
            with accelerator.autocast(), gathered(policy):
                rollout = sample(
                    model,
                    [chosen[i].ids for i in mine],
                    group_size=grpo.group_size,
                    max_new_tokens=grpo.max_new_tokens,
                    temperature=grpo.temperature,
                    stop_ids=stops,
                    pad_id=pad_id,
                    uniforms=uniforms.view(len(chosen), grpo.group_size, -1)[mine].flatten(0, 1),
                )

            # ---- 2. Rewards and advantages, over whole groups ---------------------------------------------------------
            texts = rollout.texts(tokenizer)
            total_rewards, parts = rewards.of_rollout(
                functions, grpo.reward_weights, rollout, texts, [chosen[i].row for i in mine]
            )
            scores = torch.tensor(total_rewards)
            advantages = (
                group_relative_advantages(scores, grpo.group_size, scale=grpo.advantage_scale)
                if grpo.advantage == "group"
                else leave_one_out_advantages(scores, grpo.group_size)
            )
            answers = [
                Answer(e.muted() if grpo.mask_truncated and not done else e, a, logps)
                for e, a, logps, done in zip(
                    rollout.examples(), advantages.tolist(), rollout.logps, rollout.finished, strict=True
                )
            ]
            rollout_metrics = parts | describe(scores, rollout, texts, grpo, functions)
            if rollout_number == 0:
                preflight.dead_groups(run, rollout_metrics, grpo.mask_truncated)

            # ---- 3. Old and reference log-probs, before anything moves ------------------------------------------------
            with gathered(policy):
                if reference is not None:
                    answers = score(answers, reference, "ref_logps", run, pad_id, grpo.temperature)
                if updates_per_rollout > 1:  # with a single update the old policy is the policy itself, detached
                    answers = score(answers, policy, "old_logps", run, pad_id, grpo.temperature)

        # ---- 4. One optimiser step = one minibatch ----------------------------------------------------------------
        for window in run.minibatches(answers, mine, len(chosen), grpo, rollout_number):
            active = [a.example.num_active for micro in window for a in micro]
            total = run.sum_over_processes(
                {
                    "token": sum(active),
                    "sequence": sum(n > 0 for n in active),
                    "constant": sum(n > 0 for n in active) * grpo.max_new_tokens,
                }[grpo.length_weighting]
            )
            for i, micro in enumerate(window):
                # ---- 5. Forward and loss --------------------------------------------------------------------------
                examples = [a.example for a in micro]
                batch = collate(examples, pad_id).to(run.device)
                width = batch.input_ids.shape[1]
                laid = {
                    name: pad_values([getattr(a, name) for a in micro], examples, width).to(run.device)
                    for name in ("sampler_logps", "old_logps", "ref_logps")
                    if getattr(micro[0], name) is not None
                }
                with run.no_sync_unless_last(policy, i, window):
                    logps, entropy = policy(batch, grpo.temperature)  # [B, T]
                    loss, metrics = grpo_loss(
                        logps,
                        laid.get("old_logps", logps.detach()),
                        torch.tensor([a.advantage for a in micro], device=run.device),
                        token_weights(batch.active, grpo.length_weighting, total=total),
                        clip_low=grpo.clip_low,
                        clip_high=grpo.clip_high,
                        ref_logps=laid.get("ref_logps"),
                        kl_coef=grpo.kl_coef,
                        kl_estimator=grpo.kl_estimator,
                    )
                    accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
                if run.step == 0:
                    preflight.sampler(run, logps.detach(), laid["sampler_logps"], batch.active)
                metrics |= {
                    "entropy": (entropy.sum(), batch.active.sum()),
                    "p_stop": stop_probability(logps, batch, stops),
                }
                run.add(loss, metrics, tokens=sum(map(len, micro)))

            # ---- 6. Update ----------------------------------------------------------------------------------------
            grad_norm = accelerator.clip_grad_norm_(policy.parameters(), max_grad_norm)
            run.refuse_non_finite(grad_norm)
            if run.step == 0:
                preflight.gradients(run, policy)
                preflight.stop_token(run, model, tokenizer)
            learning_rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

            # ---- 7. Log, evaluate, keep a checkpoint --------------------------------------------------------------
            held_out = {}
            if run.evaluate_now():
                with gathered(policy):
                    held_out["reward_held_out"] = evaluate(model, validation, functions, grpo, tokenizer, run)
            run.add(None, rollout_metrics)
            run.log({"grad_norm": grad_norm, "learning_rate": learning_rate} | held_out)
            if run.checkpoints.due():
                run.checkpoints.write(model, tokenizer, run.rollout_state(answers, mine, rollout_metrics))

    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(model, tokenizer, showcase.compare(before, after))


def describe(scores: torch.Tensor, rollout: Rollout, texts: list[str], grpo, functions: list) -> dict[str, tuple]:
    """What to watch, as (sum, count): the reward, and the ways a run dies quietly."""
    n, groups = len(scores), scores.view(-1, grpo.group_size)
    metrics = {
        "reward": (scores.sum(), n),
        "dead_groups": ((groups.amax(1) == groups.amin(1)).sum(), len(groups)),
        "completion_length": (sum(map(len, rollout.completion_ids)), n),
        "finished": (sum(rollout.finished), n),
    }
    if rewards.answer in functions:
        metrics["parse_failures"] = (sum(rewards.extract_answer(text) is None for text in texts), n)
    return metrics


@torch.no_grad()
def score(answers: list[Answer], scorer, name: str, run: Run, pad_id: int, temperature: float) -> list[Answer]:
    """Fill in old_logps or ref_logps: one forward over this process's answers, at the temperature of the rollout."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]), reverse=True)
    out = list(answers)
    for start in range(0, len(order), run.training.micro_batch_size):
        picked = order[start : start + run.training.micro_batch_size]
        batch = collate([answers[i].example for i in picked], pad_id).to(run.device)
        with run.accelerator.autocast():
            logps, _ = scorer(batch, temperature)
        for row, i in enumerate(picked):
            out[i] = replace(answers[i], **{name: logps[row][batch.active[row]].float().cpu()})
    return out


def evaluate(model, validation: list[Prompt], functions: list, grpo, tokenizer, run: Run) -> float:
    """Mean reward of one greedy answer to each held-out prompt."""
    mine = validation[run.accelerator.process_index :: run.accelerator.num_processes]
    scores = []
    if mine:  # more processes than prompts: some have nothing to ask, and add 0
        with run.accelerator.autocast():
            rollout = ask(model, tokenizer, [p.ids for p in mine], max_new_tokens=grpo.max_new_tokens)
        scores, _ = rewards.of_rollout(
            functions, grpo.reward_weights, rollout, rollout.texts(tokenizer), [p.row for p in mine]
        )
    return run.sum_over_processes(sum(scores)) / len(validation)


if __name__ == "__main__":
    with clear_exit():
        train(config)
