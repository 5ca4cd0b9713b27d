"""Distillation: draw a student's distribution to a teacher's at every token, of given answers or of its own (GKD).

    python -m loops.distill --config configs/variants/gkd_tiny.yaml
    python -m loops.distill --config configs/variants/gkd_tiny.yaml --distill.on_policy 1 --distill.mixture 1

1. Load the student and the frozen teacher, of one vocabulary. Encode each conversation, with a mask on its answers.
2. One optimiser step = a list of micro-batches. To a share of its rows (distill.on_policy) the student samples its own
   answer, in place of the given one: it is then corrected where it really goes. A share of 1 needs prompts alone.
3. Count the tokens to learn in all of them, on all processes.
4. The teacher's logits of each completion token, without gradient.
5. Forward and loss: Σ w · D(teacher, student), w = 1 / that count. Backward.
6. Clip, refuse NaN, update.
7. Log and evaluate (the divergence on given answers that were kept out). Keep a checkpoint. Save at the end.

Left out: a teacher with another tokenizer (its answers as text are for loops.sft), a gradient through the sampling, the
teacher's logits from a file or a server, an NLL term.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("distill") if __name__ == "__main__" else None

from typing import Any, NamedTuple

import torch
from torch import nn

from losses.weights import step_total, token_weights
from posttrain import models
from posttrain.config import DistillConfig
from posttrain.data.reader import Rows
from posttrain.data.rows import load_rows
from posttrain.data.stream import FIRST
from posttrain.errors import UserError, clear_exit
from posttrain.evaluation.during import Suites
from posttrain.models.sharded import gathered
from posttrain.models.teacher import CompletionDivergence, CompletionLogits, load_teacher
from posttrain.rollouts.asking import Showcase
from posttrain.rollouts.own_answers import Row, answered, chosen, unanswered
from posttrain.run.training import Result, Run, left_as_found
from posttrain.tokens.batch import Example, collate
from posttrain.tokens.examples import hold_out, prompts, sft_examples, to_show


class Start(NamedTuple):
    """What stands before the first step."""

    model: nn.Module
    tokenizer: Any
    student: CompletionDivergence
    teacher: CompletionLogits
    examples: Any  # a list, or a stream
    validation: list
    room: int  # longest prompt that leaves max_new_tokens to an answer
    showcase: Showcase


def start(config: DistillConfig, run: Run, rows: list[dict] | None = None) -> Start:
    # ---- 1. Student, teacher, data ----------------------------------------------------------------------------
    distill = config.distill
    data = load_rows(config.data, "distill" if distill.on_policy == 1 else "sft", rows)
    given = answers_are_given(data, config)
    model, tokenizer, notes = models.load_policy(config.model, run)
    teacher = load_teacher(distill.teacher, tokenizer, run)
    limit = models.max_length(model, config.data.max_length)
    if given:
        encoded = sft_examples(data, tokenizer, limit, config.data)
    else:
        encoded = prompts(data, tokenizer, limit, distill.max_new_tokens, config.data, "distill", unanswered)
    examples, validation = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded, given=given)
    room = limit - (distill.max_new_tokens or 0)
    if distill.on_policy:
        refuse_no_room(examples, room, limit, run)

    models.no_dropout(model)  # what is compared with the teacher is the model that will be used
    student = run.parallel.spread(CompletionDivergence(model.train()))
    run.checkpoints.remember("the teacher", teacher)
    shown = to_show(encoded, config.data.validation_split, config.data.seed)
    showcase = Showcase(shown, tokenizer, config.output.samples, limit)
    return Start(model, tokenizer, student, teacher, examples, validation, room, showcase)


@left_as_found()
def train(config: DistillConfig, *, rows: list[dict] | None = None) -> Result:
    """Run it; `rows` (any format that loops.sft reads, with on_policy: 1 also prompts) takes the place of
    config.data.name."""
    run, distill = Run(config), config.distill
    suites = Suites(run)  # config.evaluation: measured before the first step, in between, and at the end
    model, tokenizer, student, teacher, examples, validation, room, showcase = start(config, run, rows)
    pad_id, how = tokenizer.pad_token_id, (distill.mixture, distill.temperature)
    with gathered(student):
        before = showcase.answers(model)
    student, optimizer, scheduler = run.prepare(student, model, tokenizer, run.steps_for(examples))
    suites.before()
    accelerator, seed = run.accelerator, config.training.seed

    # ---- 2. One optimiser step = a list of micro-batches ------------------------------------------------------
    def asked(step_rows: list[Example]) -> list:
        return chosen(step_rows, distill.on_policy, room, seed=seed, step=run.step)

    for drawn in run.windows(examples, of_step=asked):
        window, told = [[row.example for row in micro] for micro in drawn], None
        if distill.on_policy:
            with run.parallel.autocast(), gathered(student):
                size = config.training.batch_size
                window, told = answered(drawn, model, tokenizer, distill, rows=size, seed=seed, step=run.step)

        # ---- 3. Count -----------------------------------------------------------------------------------------
        total = run.sum_over_processes(step_total(row.num_active for micro in window for row in micro))

        for i, micro in enumerate(window):
            # ---- 4. The teacher -------------------------------------------------------------------------------
            batch = collate(micro, pad_id).to(run.device)
            with run.parallel.autocast():
                teacher_logits = teacher(batch)  # [N, V], of the predictions that count
            weights = token_weights(batch.active, total=total)  # [B, T]

            # ---- 5. Forward and loss --------------------------------------------------------------------------
            with run.no_sync_unless_last(student, i, window):
                loss, metrics = student(batch, teacher_logits, weights, *how)
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages; our weights already sum
            run.add(loss, metrics, tokens=sum(map(len, micro)))

        # ---- 6. Update ----------------------------------------------------------------------------------------
        grad_norm = accelerator.clip_grad_norm_(student.parameters(), config.training.max_grad_norm)
        run.check_update(grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        # ---- 7. Log, evaluate, keep a checkpoint, save --------------------------------------------------------
        held_out = {}
        if run.evaluate_now():
            held_out["validation_loss"] = evaluate(student, teacher, validation, how, run, pad_id)
        run.log({"grad_norm": grad_norm} | held_out | suites.due(), told)
        if run.checkpoints.due():
            run.checkpoints.write()

    with gathered(student):
        after = showcase.answers(model)
    return run.finish(showcase.compare(before, after))


@torch.no_grad()
def evaluate(student, teacher, validation: list, how: tuple[float, float], run: Run, pad_id: int) -> float:
    """Mean divergence per token of the given answers that were kept out."""
    loss, count = 0.0, 0.0
    for micro in run.slices(validation):
        batch = collate(micro, pad_id).to(run.device)
        with run.parallel.autocast():
            teacher_logits = teacher(batch)
        part, _ = student(batch, teacher_logits, batch.active.float(), *how)
        loss, count = loss + part.item(), count + batch.active.sum().item()
    return run.sum_over_processes(loss) / run.sum_over_processes(count)


def answers_are_given(data: Any, config: DistillConfig) -> bool:
    """Do all rows come with an answer? With on_policy: 1 none has to. UserError for rows of both kinds, and where a
    given answer is needed."""
    rows = (data if isinstance(data, Rows) else data.head(FIRST)).rows
    asked = ["prompt" in row for row in rows]
    if any(asked) and not all(asked):
        raise UserError(
            f"{sum(asked):,} of {len(rows):,} rows are prompts without an answer: give data.name of one kind, or of prompts alone"
        )
    if any(asked) and config.data.validation_split:
        raise UserError(
            "data.validation_split: the divergence is measured on given answers that are kept out, and these rows are prompts alone: "
            "set it to 0 (and training.eval_every to null); evaluation.suites measure what the student says"
        )
    return not any(asked)


def refuse_no_room(examples: Any, room: int, limit: int, run: Run) -> None:
    """on_policy needs prompts that leave max_new_tokens to an answer; those that do not keep their given ones."""
    if not isinstance(examples, list):  # of a stream: as they come
        examples = []
    asked = [Row(example).prompt_ids for example in examples]
    long = sum(len(prompt) > room for prompt in asked)
    if room < 1 or (asked and long == len(asked)):
        raise UserError(
            f"distill.max_new_tokens leaves no prompt room in data.max_length = {limit}: lower one or raise the other"
        )
    if asked and not any(asked):
        raise UserError("distill.on_policy needs prompts to answer: these rows are plain text, learned whole")
    if long:
        run.say(f"{long:,} prompts leave no room for distill.max_new_tokens: their given answers are learned")


if __name__ == "__main__":
    with clear_exit():
        train(config)
