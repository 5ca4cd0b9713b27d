"""Direct preference optimisation: prefer the chosen answer to the rejected one, without leaving the reference too far.

    python -m loops.dpo --config configs/dpo_tiny.yaml
    python -m loops.dpo --config configs/dpo_tiny.yaml --dpo.sft_weight 0        # watch pure DPO break a small model

1. Load the policy and freeze the reference: the policy as it is now, at step 0. Encode each pair behind one prompt.
2. One optimiser step = a list of micro-batches. Count the pairs (and chosen tokens) of all of them first.
3. Forward: Σ log π over each completion, for the policy and, without gradient, for the reference.
4. Loss: − log σ(margin), or another function of the same four numbers (dpo.loss), plus sft_weight × the mean NLL of the
   chosen tokens. Backward. Preflight: at step 0 policy and reference say the same, and the term is ln 2 (or its own).
5. Clip, refuse NaN, update.
6. Log and evaluate: look at the chosen log-prob too. The loss only sees the difference, and both can fall together.
   Keep a checkpoint.
7. Save the model, the curves, and the same questions answered before and after.

Left out: a moving reference. See loops/simpo.py (no reference) and loops/kto.py (no pairs).
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("dpo") if __name__ == "__main__" else None

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses.logprobs import sequence_logps
from losses.preference import preference_loss
from losses.sft import completion_cross_entropy
from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import DpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.reference import frozen_reference
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase
from posttrain.run import preflight, processes
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import Batch, collate, stop_probability
from posttrain.tokens.examples import both_sides, hold_out, pairs, to_show


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    policy: models.CompletionLogps
    reference: nn.Module | None
    pairs: Any  # a list, or a stream
    validation: list
    showcase: Showcase


def start(config: DpoConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Policy, reference, pairs --------------------------------------------------------------------------
    data = load_rows(config.data, "dpo", rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = pairs(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or policy != reference at step 0
    policy = run.parallel.spread(models.CompletionLogps(model.train()))
    run.share_prompts(policy)  # training.share_prompts: a pair's prompt goes through the model once
    reference = frozen_reference(policy, config.model, run)
    run.checkpoints.remember("the reference", reference)
    shown = to_show(encoded, config.data.validation_split, config.data.seed)
    showcase = Showcase(shown, tokenizer, config.output.samples, limit)
    return Start(model, tokenizer, policy, reference, examples, validation, showcase)


@left_as_found()
def train(config: DpoConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (any preference format of posttrain/data/formats.py) takes the place of config.data.name."""
    run = Run(config)
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    model, tokenizer, policy, reference, examples, validation, showcase = start(config, run, rows)
    pad_id, stops, cache = tokenizer.pad_token_id, template.stop_ids(tokenizer), {}
    starts_there = config.model.reference in ("auto", "copy", "adapter_off")  # not from a model of another name
    dpo = config.dpo
    loss_of = preference_loss(dpo.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing or None, penalty=dpo.penalty)
    if dpo.precompute:
        items = [*examples, *validation]
        cache = run.checkpoints.saved("cache") or precompute(reference, items, run, pad_id)
        reference = None  # its memory is free again
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
            ref_logps = reference_logps(reference, cache, micro, batch, run)  # [2B]
            with run.no_sync_unless_last(policy, i, window):
                token_logps, entropy = policy(batch)  # [2B, T]: the chosen rows, then the rejected ones
                logps = sequence_logps(token_logps, batch.active)  # [2B]

                # ---- 4. Loss --------------------------------------------------------------------------------------
                (chosen, rejected), (chosen_logps, _) = batch.active.chunk(2), token_logps.chunk(2)  # [B, T] each
                weights = chosen.any(dim=1).float() / n_pairs  # [B], 0 for a muted pair
                dpo_term, metrics = loss_of(*sides(logps, ref_logps, batch.active, run), weights=weights)
                loss = dpo_term
                if dpo.sft_weight:
                    nll, _ = completion_cross_entropy(chosen_logps, token_weights(chosen, "token", total=n_chosen))
                    loss = dpo_term + dpo.sft_weight * nll
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            if run.step == 0 and starts_there:  # every margin is 0
                preflight.reference(run, logps.detach(), ref_logps, batch.active, same_rows=not cache)
            metrics |= {
                "chosen_logps_per_token": (chosen_logps.sum(), chosen.sum()),
                "rejected_logps_per_token": (token_logps.chunk(2)[1].sum(), rejected.sum()),
                "entropy": (entropy.sum(), batch.active.sum()),
                "p_stop": stop_probability(token_logps, batch, stops),
            }
            run.add(loss, metrics, terms={"dpo_loss": dpo_term}, tokens=int(batch.attention_mask.sum()))

        # ---- 5. Update --------------------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        if run.step == 0 and starts_there:
            preflight.at_margin_0(run, run.meter.term_of_all("dpo_loss"), loss_of(*torch.zeros(4, 1))[0].item())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 6. Log, evaluate, keep a checkpoint --------------------------------------------------------------
        held_out = evaluate(policy, reference, cache, validation, loss_of, run, pad_id) if run.evaluate_now() else {}
        run.log({"grad_norm": grad_norm} | held_out | suites.due())
        if run.checkpoints.due():
            run.checkpoints.write({"cache": cache})

    # ---- 7. Save ----------------------------------------------------------------------------------------------
    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(showcase.compare(before, after), showcase.own)


def sides(logps: Tensor, ref_logps: Tensor, active: Tensor, run: Run) -> tuple[Tensor, ...]:
    """Two [2B] -> policy chosen, policy rejected, reference chosen, reference rejected, [B] each: sums over the
    completion, or, with dpo.length_normalize, means per token."""
    tokens = active.sum(dim=1).clamp(min=1) if run.config.dpo.length_normalize else 1
    return *(logps / tokens).chunk(2), *(ref_logps / tokens).chunk(2)


@torch.no_grad()
def reference_logps(reference: nn.Module | None, cache: dict, micro: list, batch: Batch, run: Run) -> Tensor:
    """Σ log π_ref of each completion, [2B]: from the frozen model, or from what was precomputed."""
    if reference is None:
        return torch.tensor([cache[p.index][side] for side in (0, 1) for p in micro], device=run.device)
    with run.parallel.autocast():
        token_logps, _ = reference(batch)
    return sequence_logps(token_logps, batch.active)


@torch.no_grad()
def precompute(reference: nn.Module, items: list, run: Run, pad_id: int) -> dict[int, tuple[float, float]]:
    """The reference's two log-probs of every pair, computed once: {index: (chosen, rejected)}."""
    cache = {}
    for micro in run.slices(items, "reference log-probs"):
        batch = collate(both_sides(micro), pad_id, run.sharing).to(run.device)
        chosen, rejected = reference_logps(reference, {}, micro, batch, run).view(2, -1).tolist()
        cache |= {p.index: both for p, both in zip(micro, zip(chosen, rejected, strict=True), strict=True) if p.counts}
    return processes.merge(cache)


@torch.no_grad()
def evaluate(policy, reference, cache: dict, validation: list, loss_of: Callable, run: Run, pad_id: int) -> dict:
    """The loss and the accuracy on held-out pairs."""
    loss, hits, count = 0.0, 0.0, 0.0
    for micro in run.slices(validation):
        batch = collate(both_sides(micro), pad_id, run.sharing).to(run.device)
        ref_logps = reference_logps(reference, cache, micro, batch, run)
        logps = sequence_logps(policy(batch)[0], batch.active)
        weights = batch.active.chunk(2)[0].any(dim=1).float()
        sums, metrics = loss_of(*sides(logps, ref_logps, batch.active, run), weights=weights)
        loss, hits, count = loss + sums.item(), hits + metrics["accuracy"][0].item(), count + weights.sum().item()
    loss, hits, count = (run.sum_over_processes(x) for x in (loss, hits, count))
    return {"validation_loss": loss / count, "validation_accuracy": hits / count}


if __name__ == "__main__":
    with clear_exit():
        train(config)
