"""Supervised fine-tuning: teach a model to answer by showing it answers.

    python -m loops.sft --config configs/sft_tiny.yaml
    python -m loops.sft --config configs/sft_tiny.yaml --model.name FOLDER --data.name rows.jsonl --training.max_steps 5

1. Load the model. Turn each conversation into token ids, with a mask that is True on the assistant's tokens.
2. One optimiser step = a list of micro-batches (with training.packing: of packed rows, which changes the layout and
   nothing else). Count the tokens to learn in all of them, on all processes, first.
3. Forward: the log-probability of each completion token.  Loss: − Σ w · log π, w = 1 / that count (or, with sft.loss:
   dft, each token times its own probability).
4. Backward; after the last micro-batch, clip the gradient, refuse NaN, update.
5. Log, and every so often evaluate on rows that were kept out, and write a checkpoint.
6. Save the model, the curves, and the same questions answered before and after.

Left out: loss on the prompt, NEFTune noise.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("sft") if __name__ == "__main__" else None

from typing import Any, NamedTuple

import torch
from torch import nn

from losses.sft import completion_cross_entropy, dft_loss
from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import SftConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Showcase
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import template
from posttrain.tokens.batch import collate, collate_packed, stop_probability
from posttrain.tokens.examples import hold_out, sft_examples, to_show


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    policy: models.CompletionLogps
    examples: Any  # a list, or a stream
    validation: list
    pack_to: int | None  # tokens of a packed row
    showcase: Showcase


def start(config: SftConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Model and data ------------------------------------------------------------------------------------
    data = load_rows(config.data, "sft", rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = sft_examples(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)

    policy = run.parallel.spread(models.CompletionLogps(model.train()))
    if config.training.packing:
        with gathered(policy):
            policy.find_a_way_to_pack()
    shown = to_show(encoded, config.data.validation_split, config.data.seed)
    showcase = Showcase(shown, tokenizer, config.output.samples, limit)
    pack_to = limit if config.training.packing else None
    return Start(model, tokenizer, policy, examples, validation, pack_to, showcase)


@left_as_found()
def train(config: SftConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (any format of posttrain/data/formats.py) takes the place of config.data.name."""
    run = Run(config)
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    model, tokenizer, policy, examples, validation, pack_to, showcase = start(config, run, rows)
    to_batch = collate if pack_to is None else collate_packed
    with gathered(policy):
        before, stops = showcase.answers(model), template.stop_ids(tokenizer)
    policy, optimizer, scheduler = run.prepare(policy, model, tokenizer, run.steps_for(examples))
    suites.before()
    accelerator, how = run.accelerator, config.sft.length_weighting
    loss_of = {"nll": completion_cross_entropy, "dft": dft_loss}[config.sft.loss]

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(examples, pack_to):
        total = run.sum_over_processes(step_total((row.num_active for micro in window for row in micro), how))

        for i, micro in enumerate(window):
            # ---- 3. Forward and loss --------------------------------------------------------------------------
            batch = to_batch(micro, tokenizer.pad_token_id).to(run.device)
            with run.no_sync_unless_last(policy, i, window):
                logps, entropy = policy(batch)  # [B, T], 0 where inactive
                weights = token_weights(batch.active, how, total=total)  # [B, T]
                loss, metrics = loss_of(logps, weights)
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            metrics |= {
                "entropy": (entropy.sum(), batch.active.sum()),
                "p_stop": stop_probability(logps, batch, stops),
            }
            run.add(loss, metrics, tokens=sum(map(len, micro)))

        # ---- 4. Update ----------------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 5. Log, evaluate, keep a checkpoint --------------------------------------------------------------
        held_out = {}
        if run.evaluate_now():
            held_out["validation_loss"] = evaluate(policy, validation, run, tokenizer.pad_token_id)
        run.log({"grad_norm": grad_norm} | held_out | suites.due())
        if run.checkpoints.due():
            run.checkpoints.write()

    # ---- 6. Save ----------------------------------------------------------------------------------------------
    with gathered(policy):
        after = showcase.answers(model)
    return run.finish(showcase.compare(before, after), showcase.own)


@torch.no_grad()
def evaluate(policy, validation: list, run: Run, pad_id: int) -> float:
    """Mean negative log-likelihood per held-out token: one sum over all tokens, not a mean of batch means."""
    policy.eval()
    nll, count = 0.0, 0.0
    for micro in run.slices(validation):
        batch = collate(micro, pad_id).to(run.device)
        logps, _ = policy(batch)
        nll, count = nll - logps.sum().item(), count + batch.active.sum().item()
    policy.train()
    return run.sum_over_processes(nll) / run.sum_over_processes(count)


if __name__ == "__main__":
    with clear_exit():
        train(config)
