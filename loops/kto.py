"""Kahneman-Tversky optimisation: learn from single answers that were judged good or bad, without pairs.

    python -m loops.kto --config configs/variants/kto_tiny.yaml
    python -m loops.kto --config configs/variants/kto_tiny.yaml --kto.desirable_weight 2

1. Load the policy and freeze the reference: the policy as it is now, at step 0. Encode each judged answer.
2. One optimiser step = a list of micro-batches. Count the rows of all of them first. Beside each stands its prompt with
   the answer to another prompt of the step.
3. z0: what policy and reference say of these mismatched answers, over all micro-batches and processes; no gradient.
4. Forward: Σ log π over each completion.  Loss: λ (1 − σ(± β (r − z0))). Backward. Preflight on the first step: policy
   and reference say the same of every answer, so every row is worth λ / 2.
5. Clip, refuse NaN, update.
6. Log and evaluate: the rewards of good and bad answers should part. Keep a checkpoint.
7. Save the model, the curves, and the same questions answered before and after.

Left out: precomputed reference log-probs (who is mismatched with whom changes from epoch to epoch), z0 from samples of
the policy, a moving reference.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("kto") if __name__ == "__main__" else None

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.door import Metrics
from losses.kto import kto_kl, kto_loss
from losses.logprobs import sequence_logps
from posttrain import models
from posttrain.config import KtoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.reference import frozen_reference
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase
from posttrain.run import preflight
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import collate, stop_probability
from posttrain.tokens.examples import hold_out, labelled, to_show
from posttrain.tokens.mismatched import Judged, mismatched


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    policy: models.CompletionLogps
    reference: nn.Module
    examples: Any  # a list, or a stream
    validation: list
    limit: int  # longest row in tokens
    showcase: Showcase


def start(config: KtoConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Policy, reference, judged answers -----------------------------------------------------------------
    data = load_rows(config.data, "outcome", rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = labelled(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or policy != reference at step 0
    policy = run.parallel.spread(models.CompletionLogps(model.train()))
    run.share_prompts(policy)  # training.share_prompts: where several rows of a micro-batch have one prompt
    reference = frozen_reference(policy, config.model, run)
    run.checkpoints.remember("the reference", reference)
    shown = to_show(encoded, config.data.validation_split, config.data.seed)
    showcase = Showcase(shown, tokenizer, config.output.samples, limit)
    return Start(model, tokenizer, policy, reference, examples, validation, limit, showcase)


@left_as_found()
def train(config: KtoConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (prompt + completion + label, or messages + label) takes the place of config.data.name."""
    run = Run(config)
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    model, tokenizer, policy, reference, examples, validation, limit, showcase = start(config, run, rows)
    pad_id, stops = tokenizer.pad_token_id, template.stop_ids(tokenizer)
    starts_there = config.model.reference in ("auto", "copy", "adapter_off")  # not from a model of another name
    with gathered(policy):
        before = showcase.answers(model)
    policy, optimizer, scheduler = run.prepare(policy, model, tokenizer, run.steps_for(examples))
    suites.before()
    accelerator = run.accelerator

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(examples, of_step=partial(mismatched, limit=limit)):
        n_rows = run.sum_over_processes(sum(row.counts for micro in window for row in micro))

        # ---- 3. z0 of the whole step ------------------------------------------------------------------------------
        z0 = baseline(policy, reference, window, run, pad_id)

        for i, micro in enumerate(window):
            # ---- 4. Forward and loss ------------------------------------------------------------------------------
            batch = collate([row.example for row in micro], pad_id, run.sharing).to(run.device)
            with torch.no_grad(), run.parallel.autocast():
                ref_logps = sequence_logps(reference(batch)[0], batch.active)  # [B]
            weights = batch.active.any(dim=1).float() / n_rows  # [B], 0 for a muted row
            with run.no_sync_unless_last(policy, i, window):
                token_logps, entropy = policy(batch)  # [B, T]
                logps = sequence_logps(token_logps, batch.active)  # [B]
                loss, metrics = loss_of(logps, ref_logps, micro, z0, config, weights)
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            if run.step == 0 and starts_there:
                preflight.reference(run, logps.detach(), ref_logps, batch.active, same_rows=True)
            good = batch.active & desirable(micro, run.device)[:, None]
            metrics |= {
                "chosen_logps_per_token": (token_logps[good].sum(), good.sum()),
                "rejected_logps_per_token": (token_logps[batch.active & ~good].sum(), (batch.active & ~good).sum()),
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
        held_out = evaluate(policy, reference, validation, limit, config, run, pad_id) if run.evaluate_now() else {}
        run.log({"grad_norm": grad_norm, "z0": z0} | held_out | suites.due())
        if run.checkpoints.due():
            run.checkpoints.write()

    # ---- 7. Save ----------------------------------------------------------------------------------------------
    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(showcase.compare(before, after), showcase.own)


@torch.no_grad()
def baseline(policy: nn.Module, reference: nn.Module, window: list[list[Judged]], run: Run, pad_id: int) -> float:
    """z0 over the mismatched rows of all micro-batches and processes: one number, the same everywhere."""
    own: list[tuple[float, float, bool]] = []
    for micro in window:
        batch = collate([row.mismatched for row in micro], pad_id, run.sharing).to(run.device)
        logps = sequence_logps(policy(batch)[0], batch.active)
        with run.parallel.autocast():
            ref_logps = sequence_logps(reference(batch)[0], batch.active)
        own += zip(logps.tolist(), ref_logps.tolist(), batch.active.any(dim=1).tolist(), strict=True)
    everyone = [row for process in run.gather(own) for row in process]
    logps, ref_logps, active = map(torch.tensor, zip(*everyone, strict=True))
    if not active.any():
        run.say("no row of this step has another one with a different prompt: z0 is 0")
    return kto_kl(logps, ref_logps, active).item()


def loss_of(
    logps: Tensor, ref_logps: Tensor, micro: list[Judged], z0: float, config: KtoConfig, weights: Tensor
) -> tuple[Tensor, Metrics]:
    """kto_loss of one micro-batch, with the keys of the config: three [B]."""
    kto, labels = config.kto, desirable(micro, logps.device)
    more = {"desirable_weight": kto.desirable_weight, "undesirable_weight": kto.undesirable_weight}
    return kto_loss(logps, ref_logps, labels, z0, beta=kto.beta, **more, weights=weights)


def desirable(micro: list[Judged], device: Any) -> Tensor:
    """[B] bool: which answers were judged good."""
    return torch.tensor([row.desirable for row in micro], device=device)


@torch.no_grad()
def evaluate(policy, reference, validation: list, limit: int, config: KtoConfig, run: Run, pad_id: int) -> dict:
    """Loss and accuracy (an answer on its label's side of z0) on held-out rows; z0 is that of all of them."""
    judged = mismatched(validation, limit)
    z0 = baseline(policy, reference, list(run.slices(judged)), run, pad_id)
    loss, hits, count = 0.0, 0.0, 0.0
    for micro in run.slices(judged):
        batch = collate([row.example for row in micro], pad_id, run.sharing).to(run.device)
        logps = sequence_logps(policy(batch)[0], batch.active)
        with run.parallel.autocast():
            ref_logps = sequence_logps(reference(batch)[0], batch.active)
        weights = batch.active.any(dim=1).float()
        part, metrics = loss_of(logps, ref_logps, micro, z0, config, weights)
        loss, hits, count = loss + part.item(), hits + metrics["accuracy"][0].item(), count + weights.sum().item()
    loss, hits, count = (run.sum_over_processes(x) for x in (loss, hits, count))
    return {"validation_loss": loss / count, "validation_accuracy": hits / count}


if __name__ == "__main__":
    with clear_exit():
        train(config)
