"""Pretraining: from random weights to a model that continues text. What the other loops begin with.

    python -m loops.pretrain --config configs/pretrain_tiny.yaml
    python -m loops.pretrain --config configs/pretrain_tiny.yaml --data.name text.jsonl --output.dir outputs/mine

1. A model of random weights and a tokenizer. Text: documents end to end, cut into rows; every token is a target.
2. One optimiser step = a list of micro-batches. Count the predictions in all of them, on all processes, first.
3. Forward: the log-probability of each next token.  Loss: − Σ w · log π, w = 1 / that count.
4. Backward; after the last micro-batch, clip the gradient, refuse NaN, update.
5. Log, and every so often write a checkpoint.
6. Measure the model, if a check is named; save it, the curves, and the same beginnings continued before and after.

Left out: everything that large models need and 150,000 parameters do not: a chunked head (the logits [B, S, V] are held
whole), documents kept apart within a row, shuffling, evaluation on held-out text. Initialisation is the architecture's
own.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("pretrain") if __name__ == "__main__" else None

import itertools

from losses.logprobs import token_logps
from losses.sft import completion_cross_entropy
from losses.weights import token_weights
from posttrain import models
from posttrain.config import PretrainConfig
from posttrain.errors import UserError, clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import Beginnings
from posttrain.rollouts.rewards import function_named
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens import text
from posttrain.tokens.batch import collate


@left_as_found()
def train(config: PretrainConfig) -> Result:
    # ---- 1. Random weights, text ------------------------------------------------------------------------------
    check = config.pretrain.check and function_named(config.pretrain.check, "pretrain.check")
    run = Run(config)
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    accelerator = run.accelerator
    model, tokenizer = models.from_scratch(config.model, run.parallel.loads_on)
    policy = run.parallel.spread(model.train())
    documents = text.documents(config.data)
    separator = text.separator_id(tokenizer, config.pretrain.separator)
    rows = text.TextRows(documents, tokenizer, separator, config.data.max_length)
    shown = Beginnings(itertools.islice(documents(0), config.output.samples), tokenizer, separator)
    with gathered(policy):
        before = shown.answers(model)
    policy, optimizer, scheduler = run.prepare(policy, model, tokenizer, config.training.max_steps)
    suites.before()

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(rows):
        total = run.sum_over_processes(sum(row.num_active for micro in window for row in micro))

        for i, micro in enumerate(window):
            # ---- 3. Forward and loss --------------------------------------------------------------------------
            batch = collate(micro, tokenizer.pad_token_id).to(run.device)
            with run.no_sync_unless_last(policy, i, window):
                logits = policy(input_ids=batch.input_ids, use_cache=False).logits  # [B, S, V]
                logps = token_logps(logits, batch.input_ids)  # [B, T]
                weights = token_weights(batch.active, "token", total=total)  # [B, T]
                loss, metrics = completion_cross_entropy(logps, weights)
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            run.add(loss, metrics, tokens=sum(map(len, micro)))

        # ---- 4. Update ----------------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 5. Log, keep a checkpoint ------------------------------------------------------------------------
        run.log({"grad_norm": grad_norm} | suites.due())
        if run.checkpoints.due():
            run.checkpoints.write()

    # ---- 6. Measure, save -------------------------------------------------------------------------------------
    with gathered(policy):
        after = shown.answers(model)
        score = None if check is None else check(model, tokenizer)
    if score is not None:
        run.say(f"{config.pretrain.check}: {score:.3f} (pretrain.min_score {config.pretrain.min_score:g})")
        if not score >= config.pretrain.min_score:
            raise UserError(
                f"{config.pretrain.check} gives {score:.3f}, pretrain.min_score is {config.pretrain.min_score:g}: not saved. Take "
                "another training.seed, more training.max_steps, or a lower min_score"
            )
    return run.finish(shown.compare(before, after))


if __name__ == "__main__":
    with clear_exit():
        train(config)
