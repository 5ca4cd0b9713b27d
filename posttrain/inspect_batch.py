"""The first batch of a run, exactly as its loop will see it, before any training.

    python -m posttrain.inspect_batch --config configs/dpo_tiny.yaml
    python -m posttrain.inspect_batch --config configs/grpo_tiny.yaml --html outputs/batch.html --rows 4

Which tokens are prompt, completion and padding; what each one (or each pair) counts in the step's loss; its log-probability
under policy and reference (equal at step 0, unless model.reference names another model); the text that is learned, decoded; what was
left out, and why. Of an RL config the first rollout is sampled, with the random numbers that the loop will use. The model is read
without dropout. Every key of the loop may be overridden.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config import loading as configs
from posttrain.errors import UserError, clear_exit


@dataclass(frozen=True)
class Inspection:
    """One micro-batch of B rows of S tokens. Of a reward model there are scores instead of log-probs."""

    tokenizer: Any
    batch: Any
    lengths: list[int]  # of each row, without its padding
    names: list[str]  # of each row: "chosen", "reward 1, advantage +0.87" …
    counts: str  # what a row, a pair or a token counts in the whole step
    weights: Any | None  # [B, T]: what each prediction counts, where tokens are what is counted
    logps: Any | None  # [B, T] of the policy, at the config's temperature
    ref_logps: Any | None
    scores: list[float] | None
    lines: list[str]  # what was read, left out, loaded


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    with clear_exit():
        path, overrides = configs.parse(arguments)
        html, shown = overrides.pop("html", None), str(overrides.pop("rows", 2))
        if not shown.isdigit():
            raise UserError(f"--rows takes a number, got {shown}")
        if path is None:
            raise UserError("give --config FILE")
        config = configs.load(path, overrides, origin="command line")
        if config.method == "ladder":
            raise UserError(f"{path}: give the config of one of its stages; a ladder holds several")
        show(inspect(config), config, int(shown), html)


def inspect(config, rows: list[dict] | None = None) -> Inspection:
    """The first micro-batch of a run of `config` (of a single process)."""
    import torch

    from posttrain.run.training import Run

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        config = config.model_copy(deep=True)
        config.output.dir, config.resume, config.tracking.to = folder, False, []
        if hasattr(config.preflight, "rows"):
            config.preflight.rows = False  # a row without a supervised token is what one may want to look at
        lines: list[str] = []
        run = Run(config)
        run.progress.say = lines.append
        made = {"sft": _sft, "dpo": _pairs, "reward": _pairs, "grpo": _rollout, "ppo": _rollout}[config.method]
        return replace(made(config, rows, run), lines=[line for line in lines if not line.startswith("preflight")])


# ---------------------------------------------------------------- what each loop does before its first forward pass


def _sft(config, rows, run) -> Inspection:
    from losses.weights import token_weights
    from posttrain import models
    from posttrain.data.rows import load_rows
    from posttrain.tokens.batch import collate, collate_packed
    from posttrain.tokens.examples import hold_out, sft_examples

    data = load_rows(config.data, "sft", rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = sft_examples(data, tokenizer, limit, config.data)
    examples, _ = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)
    policy, pack_to = models.CompletionLogps(model), None
    if config.training.packing:
        policy.find_a_way_to_pack()
        pack_to = limit
    run.num_steps = 1
    window = next(run.windows(examples, pack_to))
    total = {
        "token": sum(e.num_active for micro in window for e in micro),
        "sequence": sum(e.num_active > 0 for micro in window for e in micro),
    }[config.sft.length_weighting]
    batch = (collate if pack_to is None else collate_packed)(window[0], tokenizer.pad_token_id).to(run.device)
    weights = token_weights(batch.active, config.sft.length_weighting, total=total)
    lengths, counts = (
        [len(row) for row in window[0]],
        f"{config.sft.length_weighting} weighting, total {total:g} in the step",
    )
    names = [f"{len(row.examples)} rows packed" if pack_to is not None else "row" for row in window[0]]
    return _finish(run, policy, None, tokenizer, batch, lengths, names, counts, weights)


def _pairs(config, rows, run) -> Inspection:
    from posttrain import models
    from posttrain.data.rows import load_rows
    from posttrain.models import scalar
    from posttrain.models.reference import frozen_reference
    from posttrain.tokens.batch import collate
    from posttrain.tokens.examples import hold_out, labelled, pairs

    outcome = config.method == "reward" and config.reward.loss == "outcome"
    data = load_rows(config.data, "outcome" if outcome else config.method, rows)
    load = models.load_policy if config.method == "dpo" else scalar.load_scorer
    model, tokenizer, notes = load(config.model, run)
    if config.method == "reward":
        model.config.pad_token_id = scalar.use_a_pad_that_ends_nothing(tokenizer)
    limit = models.max_length(model, config.data.max_length)
    encoded = (labelled if outcome else pairs)(data, tokenizer, limit, config.data)
    examples, _ = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)
    run.num_steps = 1
    window = next(run.windows(examples))
    micro, n = window[0], sum(item.counts for part in window for item in part)
    if outcome:
        items, names = [item.example for item in micro], [f"label {item.label:g}" for item in micro]
    else:
        items = [p.chosen for p in micro] + [p.rejected for p in micro]
        names = [f"{side} {i + 1}" for side in ("chosen", "rejected") for i in range(len(micro))]
    batch = collate(items, tokenizer.pad_token_id).to(run.device)
    lengths, counts = [len(item) for item in items], f"a {'row' if outcome else 'pair'} counts 1/{n:g} of the step"
    if config.method == "reward":
        counts += ", by the scores at the end of its answers"
        scores = scalar.CompletionScores(model.eval())(batch).tolist()
        return Inspection(tokenizer, batch, lengths, names, counts, None, None, None, scores, [])
    counts += ", by the sums of its log-probs"
    if config.dpo.sft_weight:
        chosen = sum(pair.chosen.num_active for part in window for pair in part)
        counts += (
            f"; beside it each chosen token counts {config.dpo.sft_weight:g}/{chosen:g} in the NLL (dpo.sft_weight)"
        )
    models.no_dropout(model)
    policy = models.CompletionLogps(model.train())
    reference = frozen_reference(policy, config.model, run.compute)
    return _finish(run, policy, reference, tokenizer, batch, lengths, names, counts, None)


def _rollout(config, rows, run) -> Inspection:
    import torch

    from losses.advantages import group_relative_advantages, leave_one_out_advantages
    from losses.weights import token_weights
    from posttrain import models
    from posttrain.data.rows import load_rows
    from posttrain.models.reference import frozen_reference
    from posttrain.rollouts import rewards
    from posttrain.rollouts.sampling import draw_uniforms, sample
    from posttrain.rollouts.scoring import Judge
    from posttrain.tokens import template
    from posttrain.tokens.batch import collate
    from posttrain.tokens.examples import hold_out, prompts

    rl = getattr(config, config.method)
    data = load_rows(config.data, config.method, rows)
    model, tokenizer, notes = models.load_policy(config.model, run)
    limit = models.max_length(model, config.data.max_length)
    encoded = prompts(data, tokenizer, limit, rl.max_new_tokens, config.data, config.method)
    items, _ = hold_out(encoded, config.data.validation_split, config.data.seed)
    run.introduce(notes, encoded)
    models.no_dropout(model)
    policy = models.CompletionLogps(model.train())
    kl = rl.kl_coef + getattr(rl, "kl_loss_coef", 0)
    reference = frozen_reference(policy, config.model, run.compute) if kl > 0 else None
    run.num_steps = 1
    _, chosen, mine = next(run.prompt_windows(items, rl.prompts_per_step))
    answers = len(chosen) * rl.group_size
    with run.accelerator.autocast():
        rollout = sample(
            model, [p.ids for p in chosen], group_size=rl.group_size, max_new_tokens=rl.max_new_tokens, temperature=rl.temperature,
            stop_ids=template.stop_ids(tokenizer), pad_id=tokenizer.pad_token_id,
            uniforms=draw_uniforms(answers, rl.max_new_tokens, seed=config.training.seed, step=0),
        )  # fmt: skip
    examples = rollout.examples()
    if config.method == "grpo":
        functions = rewards.find(rl.reward, rl.reward_weights)
        rewards.refuse_bad_targets(functions, data)
        totals, _ = rewards.of_rollout(functions, rl.reward_weights, rollout, rollout.texts(tokenizer), [p.row for p in chosen])  # fmt: skip
        scores = torch.tensor(totals)
        advantages = (
            group_relative_advantages(scores, rl.group_size, scale=rl.advantage_scale)
            if rl.advantage == "group"
            else leave_one_out_advantages(scores, rl.group_size)
        )
        names = [f"reward {r:g}, advantage {a:+.2f}" for r, a in zip(totals, advantages.tolist(), strict=True)]
        if rl.mask_truncated:
            examples = [e if done else e.muted() for e, done in zip(examples, rollout.finished, strict=True)]
        how = rl.length_weighting
    else:
        judge = Judge(rl, None, data, run.device, config.training.micro_batch_size)
        judge.refuse_another_vocabulary(tokenizer)
        totals, _ = judge(rollout, tokenizer, chosen)
        names, how = [f"score {s:g}" for s in totals], "token"
    cut_off = ", cut off"
    if config.method == "ppo" and rl.truncated == "bootstrap":
        cut_off += " (the critic's value counts instead of it)"
    elif config.method == "ppo" and rl.truncation_penalty is not None:
        cut_off += f" ({rl.truncation_penalty:g} counts instead of it)"
    elif config.method == "grpo" and rl.mask_truncated:
        cut_off += " and left out of the loss"
    names = [name if done else name + cut_off for name, done in zip(names, rollout.finished, strict=True)]
    window = next(run.minibatches([_Row(e, n) for e, n in zip(examples, names, strict=True)], mine, len(chosen), rl, 0))
    active = [row.example.num_active for micro in window for row in micro]
    alive = sum(n > 0 for n in active)
    total = {"token": sum(active), "sequence": alive, "constant": alive * rl.max_new_tokens}[how]
    batch = collate([row.example for row in window[0]], tokenizer.pad_token_id).to(run.device)
    weights = token_weights(batch.active, how, total=total)
    lengths, shown = [len(row) for row in window[0]], [row.name for row in window[0]]
    counts = f"{how} weighting, total {total:g} in the step"
    return _finish(run, policy, reference, tokenizer, batch, lengths, shown, counts, weights, rl.temperature)


@dataclass(frozen=True)
class _Row:
    example: Any
    name: str

    def __len__(self) -> int:
        return len(self.example)

    def muted(self) -> _Row:
        return replace(self, example=self.example.muted())


def _finish(
    run, policy, reference, tokenizer, batch, lengths, names, counts, weights, temperature: float = 1.0
) -> Inspection:
    with run.accelerator.autocast():
        logps = policy(batch, temperature)[0]
        ref_logps = None if reference is None else reference(batch, temperature)[0]
    return Inspection(tokenizer, batch, lengths, names, counts, weights, logps, ref_logps, None, [])


# ---------------------------------------------------------------- showing it

COLOURS = {"prompt": "cyan", "completion": "bold green", "padding": "bright_black"}


def kinds(inspection: Inspection, row: int) -> list[str]:
    """Of each token of a row: prompt, completion (it is learned, or was sampled), padding."""
    learned, length = inspection.batch.completion_mask[row].tolist(), inspection.lengths[row]
    return ["completion" if c else "prompt" if i < length else "padding" for i, c in enumerate(learned)]


def show(inspection: Inspection, config, shown: int, html: str | None) -> None:
    """On the terminal in colour, and, if asked for, the same as a page."""
    import io

    from rich.console import Console

    page = Console(record=True, width=120, file=io.StringIO() if html else None, force_terminal=None)
    consoles = [Console(soft_wrap=False), page] if html else [Console()]
    for console in consoles:
        _show(console, inspection, config, shown)
    if html:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        page.save_html(html)
        print(f"wrote {html}")


def _show(console, inspection: Inspection, config, shown: int) -> None:
    from rich.table import Table
    from rich.text import Text

    batch, tokenizer = inspection.batch, inspection.tokenizer
    for line in inspection.lines:
        console.print(Text(line))
    legend = Text("\ntokens: ").append("prompt", COLOURS["prompt"]).append("  ")
    legend.append("completion (learned)", COLOURS["completion"]).append("  ").append("padding", COLOURS["padding"])
    console.print(legend)
    console.print(
        Text(
            f"first micro-batch of loops.{config.method}: {len(batch)} rows of {batch.input_ids.shape[1]} tokens; {inspection.counts}"
        )
    )
    for row in range(min(shown, len(batch))):
        ids, kind = batch.input_ids[row].tolist(), kinds(inspection, row)
        counts = ", ".join(f"{kind.count(k)} {k}" for k in COLOURS)
        head = f"\n{row + 1}. {inspection.names[row]}: {counts}"
        if inspection.logps is not None:
            head += f"; Σ log π {inspection.logps[row].sum().item():.3f}"
        if inspection.ref_logps is not None:
            head += f", Σ log π_ref {inspection.ref_logps[row].sum().item():.3f}"
        if inspection.scores is not None:
            head += f"; score {inspection.scores[row]:+.3f}"
        console.print(Text(head, style="bold"))
        text = Text()
        for token, k in zip(ids, kind, strict=True):
            text.append(tokenizer.decode([token]).replace("\n", "⏎\n") if k != "padding" else "·", COLOURS[k])
        console.print(text)
        learned = tokenizer.decode([t for t, k in zip(ids, kind, strict=True) if k == "completion"])
        console.print(Text(f"learned: {learned!r}"))
        columns = {"weight": inspection.weights, "log π": inspection.logps, "log π_ref": inspection.ref_logps}
        columns = {name: values for name, values in columns.items() if values is not None}
        table = Table("position", "id", "token", *columns, box=None, pad_edge=False)
        for i, (token, k) in enumerate(zip(ids, kind, strict=True)):
            if k == "completion" and i:
                cells = [
                    f"{values[row, i - 1].item():.{5 if name == 'weight' else 3}f}" for name, values in columns.items()
                ]
                table.add_row(
                    str(i), str(token), Text(repr(tokenizer.decode([token]))), *cells
                )  # Text: [/INST] is no markup
        console.print(table)
    if len(batch) > shown:
        console.print(Text(f"\n… and {len(batch) - shown} more rows (--rows N shows more)"))


if __name__ == "__main__":
    main()
