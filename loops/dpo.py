"""Direct preference optimisation: prefer the chosen answer to the rejected one, without leaving the reference too far.

    python -m loops.dpo --config configs/dpo_tiny.yaml
    python -m loops.dpo --config configs/dpo_tiny.yaml --dpo.sft_weight 0        # watch pure DPO break a small model

1. Load the policy and freeze the reference: the policy as it is now, at step 0. Encode each pair behind one prompt.
2. One optimiser step = a list of micro-batches. Count the pairs (and chosen tokens) of all of them first.
3. Forward: Σ log π over each completion, for the policy and, without gradient, for the reference.
4. Loss: − log σ(margin), plus, if asked for, sft_weight × the mean NLL of the chosen tokens. Backward.
5. Preflight on the first step: policy == reference, so the DPO term must be ln 2. Clip, refuse NaN, update.
6. Log and evaluate: look at the chosen log-prob too. The loss only sees the difference, and both can fall together.
   Keep a checkpoint.
7. Save the model, the curves, and the same questions answered before and after.

Left out: the other preference losses (IPO, SimPO, ORPO, KTO), a moving reference, one row per pair with a shared prompt.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("dpo") if __name__ == "__main__" else None

import math

import torch

from losses.dpo import dpo_loss
from losses.logprobs import sequence_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain import models
from posttrain.config import DpoConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.models.reference import frozen_reference
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase
from posttrain.run import preflight
from posttrain.run.training import Result, Run
from posttrain.tokens import template
from posttrain.tokens.batch import collate, stop_probability
from posttrain.tokens.examples import hold_out, pairs


def train(config: DpoConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (any preference format of posttrain/data/formats.py) takes the place of config.data.name."""
    # ---- 1. Policy, reference, pairs --------------------------------------------------------------------------
    data = load_rows(config.data, "dpo", rows)
    run = Run(config)
    accelerator, max_grad_norm = run.accelerator, config.training.max_grad_norm
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = pairs(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    models.no_dropout(model)  # or policy != reference at step 0
    policy = models.CompletionLogps(model.train())
    reference = frozen_reference(policy, config.model, run.compute)
    run.checkpoints.remember("the reference", reference)
    pad_id, stops, cache = tokenizer.pad_token_id, template.stop_ids(tokenizer), {}
    if config.dpo.precompute:
        cache = run.checkpoints.saved("cache") or precompute(reference, encoded.items, run, pad_id)
        reference = None  # its memory is free again
    showcase = Showcase(data, tokenizer, config.output.samples, limit)
    before = showcase.answers(model)
    policy, optimizer, scheduler = run.prepare(policy, run.steps_for(examples))

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(examples):
        n_pairs = run.sum_over_processes(sum(pair.counts for micro in window for pair in micro))
        n_chosen = run.sum_over_processes(sum(pair.chosen.num_active for micro in window for pair in micro))
        dpo_term = 0.0

        for i, micro in enumerate(window):
            # ---- 3. Forward ---------------------------------------------------------------------------------------
            batch = collate([p.chosen for p in micro] + [p.rejected for p in micro], pad_id).to(run.device)
            half = len(micro)
            ref_logps = reference_logps(reference, cache, micro, batch, run)  # [2B]
            with run.no_sync_unless_last(policy, i, window):
                token_logps, entropy = policy(batch)  # [2B, T]: the chosen rows, then the rejected ones
                logps = sequence_logps(token_logps, batch.active)  # [2B]

                # ---- 4. Loss --------------------------------------------------------------------------------------
                weights = batch.active[:half].any(dim=1).float() / n_pairs  # [B], 0 for a muted pair
                loss, metrics = dpo_loss(
                    *logps.chunk(2),  # chosen [B], rejected [B]
                    *ref_logps.chunk(2),
                    beta=config.dpo.beta,
                    label_smoothing=config.dpo.label_smoothing,
                    weights=weights,
                )
                dpo_term += loss.item()
                if config.dpo.sft_weight:
                    nll, _ = completion_cross_entropy(
                        token_logps[:half], token_weights(batch.active[:half], "token", total=n_chosen)
                    )
                    loss = loss + config.dpo.sft_weight * nll
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            chosen, rejected = batch.active[:half], batch.active[half:]
            metrics |= {
                "chosen_logps_per_token": (token_logps[:half].sum(), chosen.sum()),
                "rejected_logps_per_token": (token_logps[half:].sum(), rejected.sum()),
                "entropy": (entropy.sum(), batch.active.sum()),
                "p_stop": stop_probability(token_logps, batch, stops),
            }
            run.add(loss, metrics, tokens=int(batch.attention_mask.sum()))

        # ---- 5. Preflight, update ---------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), max_grad_norm)
        run.refuse_non_finite(grad_norm)
        dpo_term = run.sum_over_processes(dpo_term)
        if run.step == 0:
            preflight.gradients(run, policy)
            preflight.stop_token(run, model, tokenizer, run.count_so_far("p_stop"))
            if config.model.reference in ("auto", "copy", "adapter_off"):  # margin 0: −log σ(0) = ln 2
                moved = "the reference is not the policy as it was (dropout left on, another adapter, or moved weights)"
                preflight.start(run, "the DPO term", dpo_term, math.log(2), moved)
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 6. Log, evaluate, keep a checkpoint --------------------------------------------------------------
        held_out = evaluate(policy, reference, cache, validation, config, run, pad_id) if run.evaluate_now() else {}
        run.log({"dpo_loss": dpo_term, "grad_norm": grad_norm, "learning_rate": learning_rate} | held_out)
        if run.checkpoints.due():
            run.checkpoints.write(model, tokenizer, {"cache": cache})

    # ---- 7. Save ----------------------------------------------------------------------------------------------
    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(model, tokenizer, showcase.compare(before, after))


@torch.no_grad()
def reference_logps(reference, cache: dict, micro: list, batch, run: Run) -> torch.Tensor:
    """Σ log π_ref of each completion, [2B]: from the frozen model, or from what was precomputed."""
    if reference is None:
        return torch.tensor([cache[p.index][side] for side in (0, 1) for p in micro], device=run.device)
    with run.accelerator.autocast():
        token_logps, _ = reference(batch)
    return sequence_logps(token_logps, batch.active)


@torch.no_grad()
def precompute(reference, items: list, run: Run, pad_id: int) -> dict[int, tuple[float, float]]:
    """The reference's two log-probs of every pair, computed once: {index: (chosen, rejected)}."""
    cache = {}
    for micro in run.slices(items, "reference log-probs"):
        batch = collate([p.chosen for p in micro] + [p.rejected for p in micro], pad_id).to(run.device)
        chosen, rejected = reference_logps(reference, {}, micro, batch, run).view(2, -1).tolist()
        cache |= {p.index: both for p, both in zip(micro, zip(chosen, rejected, strict=True), strict=True) if p.counts}
    return run.merge(cache)


@torch.no_grad()
def evaluate(
    policy, reference, cache: dict, validation: list, config: DpoConfig, run: Run, pad_id: int
) -> dict[str, float]:
    """DPO loss and accuracy on held-out pairs."""
    loss, hits, count = 0.0, 0.0, 0.0
    for micro in run.slices(validation):
        batch = collate([p.chosen for p in micro] + [p.rejected for p in micro], pad_id).to(run.device)
        half = len(micro)
        ref_logps = reference_logps(reference, cache, micro, batch, run)
        logps = sequence_logps(policy(batch)[0], batch.active)
        weights = batch.active[:half].any(dim=1).float()
        sums, metrics = dpo_loss(
            *logps.chunk(2), *ref_logps.chunk(2), beta=config.dpo.beta, label_smoothing=config.dpo.label_smoothing, weights=weights
        )  # fmt: skip
        loss, hits, count = loss + sums.item(), hits + metrics["accuracy"][0].item(), count + weights.sum().item()
    count = run.sum_over_processes(count)
    return {
        "validation_loss": run.sum_over_processes(loss) / count,
        "validation_accuracy": run.sum_over_processes(hits) / count,
    }


if __name__ == "__main__":
    with clear_exit():
        train(config)
