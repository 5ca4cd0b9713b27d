"""Reward model: learn one number per answer, from preferences (Bradley-Terry) or from right and wrong (ORM).

    python -m loops.reward --config configs/reward_tiny.yaml
    python -m loops.reward --config configs/reward_tiny.yaml --reward.loss outcome --reward.center_coef 0 \\
        --data.name tiny-outcome

1. Load the backbone of a language model under a new head: one number, read at the last token of an answer, 0 at first.
2. One optimiser step = a list of micro-batches. Count the pairs (or answers) in all of them, on all processes, first.
3. Forward: the score of every answer.  Loss: − log σ(s_chosen − s_rejected − margin), or cross-entropy.
4. Backward. Preflight on the first step: all scores are 0, so the loss must be ln 2. Clip, refuse NaN, update.
5. Log, and evaluate on held-out rows: the share of pairs in the right order, with its interval. Keep a checkpoint.
6. Save for plain AutoModelForSequenceClassification: its own forward gives these scores.

Left out: ranked lists of more than two answers (Plackett-Luce), process rewards (one label per step), ensembles.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("reward") if __name__ == "__main__" else None

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from losses.reward import bradley_terry_loss, outcome_loss
from posttrain.config import RewardConfig
from posttrain.data.rows import load_rows
from posttrain.errors import clear_exit
from posttrain.evaluation.intervals import Proportion
from posttrain.models import max_length, no_dropout, scalar
from posttrain.models.sharded import gathered
from posttrain.rollouts.asking import one_line
from posttrain.run import preflight
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens.batch import Batch, collate
from posttrain.tokens.examples import both_sides, hold_out, labelled, pairs
from posttrain.tokens.shared import Sharing


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    policy: scalar.CompletionScores
    examples: Any  # pairs, or labelled answers: a list, or a stream
    validation: list


def start(config: RewardConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Backbone, head, data ------------------------------------------------------------------------------
    preference = config.reward.loss == "preference"
    data = load_rows(config.data, "reward" if preference else "outcome", rows)
    model, tokenizer, notes = scalar.load_scorer(config.model, run)
    model.config.pad_token_id = scalar.use_a_pad_that_ends_nothing(tokenizer)
    limit = max_length(model, config.data.max_length)
    encoded = (pairs if preference else labelled)(data, tokenizer, limit, config.data)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)
    no_dropout(model)  # two answers are compared: noise on either would be part of the preference
    policy = run.parallel.spread(scalar.CompletionScores(model.train()))
    run.share_prompts(policy)  # training.share_prompts: a pair's prompt goes through the model once
    return Start(model, tokenizer, policy, examples, validation)


@left_as_found()
def train(config: RewardConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (preferences, or prompt + completion + label) takes the place of config.data.name."""
    run = Run(config)
    model, tokenizer, policy, examples, validation = start(config, run, rows)
    accelerator, pad_id = run.accelerator, tokenizer.pad_token_id
    shown = (validation or examples)[: config.output.samples] if not config.data.streaming else []
    with gathered(policy):
        before = scores_of(policy, shown, run, tokenizer)
    policy, optimizer, scheduler = run.prepare(
        policy, model, tokenizer, run.steps_for(examples), save=scalar.save_scorer
    )

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    for window in run.windows(examples):
        n = run.sum_over_processes(sum(item.counts for micro in window for item in micro))

        for i, micro in enumerate(window):
            # ---- 3. Forward and loss --------------------------------------------------------------------------
            batch = to_batch(micro, pad_id, run.sharing).to(run.device)
            with run.no_sync_unless_last(policy, i, window):
                scores = policy(batch)  # [2B]: the chosen answers, then the rejected ones; or [B]
                loss, metrics = loss_of(scores, micro, config, n)
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            run.add(loss, metrics, tokens=int(batch.attention_mask.sum()))

        # ---- 4. Preflight, update -----------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(policy.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        if run.step == 0:
            expected = math.log1p(math.exp(config.reward.margin))  # every score is 0: −log σ(−margin), ln 2 without one
            preflight.start(run, run.meter.term_of_all("loss"), expected)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 5. Log, evaluate, keep a checkpoint --------------------------------------------------------------
        held_out = {}
        if run.evaluate_now():
            held_out = evaluate(policy, validation, config, run, pad_id)
        run.log({"grad_norm": grad_norm} | held_out)
        if run.checkpoints.due():
            run.checkpoints.write()

    # ---- 6. Save ----------------------------------------------------------------------------------------------
    if validation and run.metrics and "validation_accuracy" in run.metrics[-1]:
        items = sum(item.counts for item in validation)
        run.say(f"held-out accuracy {Proportion(round(run.metrics[-1]['validation_accuracy'] * items), items)}")
    with gathered(policy):
        after = scores_of(scalar.CompletionScores(model), shown, run, tokenizer)
    return run.finish(tell(shown, before, after, tokenizer))


def to_batch(micro: list, pad_id: int, sharing: Sharing | None = None) -> Batch:
    """Pairs: the chosen rows, then the rejected ones. Labelled answers: as they are."""
    if hasattr(micro[0], "label"):
        return collate([item.example for item in micro], pad_id, sharing)
    return collate(both_sides(micro), pad_id, sharing)


def loss_of(scores: torch.Tensor, micro: list, config: RewardConfig, n: float) -> tuple[torch.Tensor, dict]:
    """The loss of one micro-batch, 1/n a row, 0 for one that is only there to fill it."""
    weights = torch.tensor([item.counts / n for item in micro], device=scores.device)
    if config.reward.loss == "outcome":
        return outcome_loss(scores, torch.tensor([item.label for item in micro], device=scores.device), weights=weights)
    chosen, rejected = scores.chunk(2)
    return bradley_terry_loss(
        chosen, rejected, margin=config.reward.margin, center_coef=config.reward.center_coef, weights=weights
    )


@torch.no_grad()
def evaluate(policy, validation: list, config: RewardConfig, run: Run, pad_id: int) -> dict[str, float]:
    """Loss and accuracy (pairs in the right order, or answers judged right) on what was held out."""
    loss, hits, count = 0.0, 0.0, 0.0
    for micro in run.slices(validation):
        part, metrics = loss_of(policy(to_batch(micro, pad_id, run.sharing).to(run.device)), micro, config, 1.0)
        loss, hits = loss + part.item(), hits + metrics["accuracy"][0].item()
        count += metrics["accuracy"][1].item()
    loss, hits, count = (run.sum_over_processes(x) for x in (loss, hits, count))
    return {"validation_loss": loss / count, "validation_accuracy": hits / count}


@torch.no_grad()
def scores_of(policy, shown: list, run: Run, tokenizer) -> list[list[float]]:
    """The score or scores of each shown item."""
    if not shown:
        return []
    with run.parallel.autocast():
        scores = policy(to_batch(shown, tokenizer.pad_token_id, run.sharing).to(run.device)).view(-1, len(shown))
    return scores.T.tolist()


def tell(shown: list, before: list, after: list, tokenizer) -> list[tuple[str, str, str]]:
    """For samples.md: what was scored, and its scores before and after."""

    def text(example) -> str:
        return one_line(tokenizer.decode(example.input_ids, skip_special_tokens=True))

    def number(scores: list[float]) -> str:
        return ", ".join(f"{s:+.2f}" for s in scores)

    names = [
        f"label {item.label:g}: {text(item.example)}"
        if hasattr(item, "label")
        else f"chosen: {text(item.chosen)} | rejected: {text(item.rejected)}"
        for item in shown
    ]
    return [(name, number(b), number(a)) for name, b, a in zip(names, before, after, strict=True)]


if __name__ == "__main__":
    with clear_exit():
        train(config)
