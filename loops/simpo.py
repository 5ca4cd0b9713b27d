"""Preferences without a reference: SimPO (lead by a margin, per token) and ORPO (odds beside the NLL).

    python -m loops.simpo --config configs/variants/simpo_tiny.yaml
    python -m loops.simpo --config configs/variants/orpo_tiny.yaml

1. Load the policy; no second model. Encode each pair behind one prompt.
2. One optimiser step = a list of micro-batches. Count the pairs (and chosen tokens) of all of them first.
3. Forward: the mean log-prob per token of each completion, Σ log π / |y|.
4. Loss. simpo: − log σ(β · difference − γ).  orpo: the chosen answers' NLL, a token mean over the step, + odds_weight ×
   − log σ(difference of the log-odds). Backward.
5. Clip, refuse NaN, update.
6. Log and evaluate: look at the chosen log-prob too. With simpo nothing but the learning rate holds the model to where
   it began. Keep a checkpoint.
7. Save the model, the curves, and the same questions answered before and after.

Left out: an NLL term for SimPO (CPO-SimPO), a penalty on the reference's KL.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("simpo") if __name__ == "__main__" else None

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.door import Metrics
from losses.logprobs import sequence_logps
from losses.orpo import orpo_loss
from losses.sft import completion_cross_entropy
from losses.simpo import simpo_loss
from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import SimpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import collate, stop_probability
from posttrain.tokens.examples import both_sides, hold_out, pairs, to_show


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    policy: models.CompletionLogps
    pairs: Any  # a list, or a stream
    validation: list
    showcase: Showcase


def start(config: SimpoConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Policy and pairs ----------------------------------------------------------------------------------
    data = load_rows(config.data, "dpo", rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = pairs(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # two answers are compared: noise on either would be part of the preference
    policy = run.parallel.spread(models.CompletionLogps(model.train()))
    run.share_prompts(policy)  # training.share_prompts: a pair's prompt goes through the model once
    shown = to_show(encoded, config.data.validation_split, config.data.seed)
    return Start(
        model, tokenizer, policy, examples, validation, Showcase(shown, tokenizer, config.output.samples, limit)
    )


@left_as_found()
def train(config: SimpoConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (any preference format of posttrain/data/formats.py) takes the place of config.data.name."""
    run = Run(config)
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    model, tokenizer, policy, examples, validation, showcase = start(config, run, rows)
    pad_id, stops = tokenizer.pad_token_id, template.stop_ids(tokenizer)
    with gathered(policy):
        before = showcase.answers(model)
    policy, optimizer, scheduler = run.prepare(policy, model, tokenizer, run.steps_for(examples))
    suites.before()
    accelerator = run.accelerator

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(examples):
        n_pairs = run.sum_over_processes(sum(pair.counts for micro in window for pair in micro))
        n_chosen = run.sum_over_processes(step_total(pair.chosen.num_active for micro in window for pair in micro))

        for i, micro in enumerate(window):
            # ---- 3. Forward ---------------------------------------------------------------------------------------
            batch = collate(both_sides(micro), pad_id, run.sharing).to(run.device)
            with run.no_sync_unless_last(policy, i, window):
                token_logps, entropy = policy(batch)  # [2B, T]: the chosen rows, then the rejected ones

                # ---- 4. Loss --------------------------------------------------------------------------------------
                (chosen, rejected), (chosen_logps, rejected_logps) = batch.active.chunk(2), token_logps.chunk(2)
                weights = chosen.any(dim=1).float() / n_pairs  # [B], 0 for a muted pair
                loss, metrics = preference_term(mean_logps(token_logps, batch.active), config, weights)
                if config.simpo.loss == "orpo":
                    nll, _ = completion_cross_entropy(chosen_logps, token_weights(chosen, "token", total=n_chosen))
                    loss = nll + config.simpo.odds_weight * loss
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            metrics |= {
                "chosen_logps_per_token": (chosen_logps.sum(), chosen.sum()),
                "rejected_logps_per_token": (rejected_logps.sum(), rejected.sum()),
                "entropy": (entropy.sum(), batch.active.sum()),
                "p_stop": stop_probability(token_logps, batch, stops),
            }
            run.add(loss, metrics, tokens=int(batch.attention_mask.sum()))

        # ---- 5. Update --------------------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 6. Log, evaluate, keep a checkpoint --------------------------------------------------------------
        held_out = evaluate(policy, validation, config, run, pad_id) if run.evaluate_now() else {}
        run.log({"grad_norm": grad_norm} | held_out | suites.due())
        if run.checkpoints.due():
            run.checkpoints.write()

    # ---- 7. Save ----------------------------------------------------------------------------------------------
    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(showcase.compare(before, after), showcase.own)


def mean_logps(token_logps: Tensor, active: Tensor) -> Tensor:
    """Σ log π / |y| of each completion: two [2B, T] -> [2B], nats per token; 0 for a muted row."""
    return sequence_logps(token_logps, active) / active.sum(dim=1).clamp(min=1)


def preference_term(means: Tensor, config: SimpoConfig, weights: Tensor) -> tuple[Tensor, Metrics]:
    """The loss on the mean log-probs [2B], chosen rows and then rejected ones; of ORPO the odds-ratio term alone."""
    if config.simpo.loss == "orpo":
        return orpo_loss(*means.chunk(2), weights=weights)
    return simpo_loss(*means.chunk(2), beta=config.simpo.beta, gamma=config.simpo.gamma, weights=weights)


@torch.no_grad()
def evaluate(policy: nn.Module, validation: list, config: SimpoConfig, run: Run, pad_id: int) -> dict[str, float]:
    """The preference term and the accuracy on held-out pairs."""
    loss, hits, count = 0.0, 0.0, 0.0
    for micro in run.slices(validation):
        batch = collate(both_sides(micro), pad_id, run.sharing).to(run.device)
        weights = batch.active.chunk(2)[0].any(dim=1).float()
        part, metrics = preference_term(mean_logps(policy(batch)[0], batch.active), config, weights)
        loss, hits, count = loss + part.item(), hits + metrics["accuracy"][0].item(), count + weights.sum().item()
    loss, hits, count = (run.sum_over_processes(x) for x in (loss, hits, count))
    return {"validation_loss": loss / count, "validation_accuracy": hits / count}


if __name__ == "__main__":
    with clear_exit():
        train(config)
