"""The first batch of a run, exactly as its loop will see it, before any training.

    python -m posttrain.inspect_batch --config configs/dpo_tiny.yaml
    python -m posttrain.inspect_batch --config configs/grpo_tiny.yaml --html outputs/batch.html --rows 4

Which tokens are prompt, completion and padding; what each one (or each pair) counts in the step's loss; its
log-probability under policy and reference (equal at step 0, unless model.reference names another model); the text that
is learned, decoded; what was left out, and why. Of an RL config the first rollout is sampled, with the random numbers
that the loop will use. All of it comes from the loop's own `start`, `roll_out` and `credit`; the model is read without
dropout. Every key of the loop may be overridden.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.config.command_line import parse
from posttrain.config.loading import load
from posttrain.config.methods import module_of
from posttrain.config.stages import SEVERAL
from posttrain.errors import UserError, clear_exit


@dataclass(frozen=True)
class Inspection:
    """One micro-batch of B rows of S tokens. Of a reward model there are scores instead of log-probs."""

    tokenizer: Any
    batch: Any
    lengths: list[int]  # of each row, without its padding
    names: list[str]  # of each row: "chosen", "reward 1, advantage +0.87" …
    counts: str  # what a row, a pair or a token counts in the whole step
    weights: Any | None = None  # [B, T]: what each prediction counts, where tokens are what is counted
    logps: Any | None = None  # [B, T] of the policy, at the config's temperature
    ref_logps: Any | None = None
    scores: list[float] | None = None
    lines: list[str] = field(default_factory=list)  # what was read, left out, loaded


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.inspect_batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the config of a loop; --KEY VALUE changes it")
    parser.add_argument("--rows", type=int, default=2, help="how many rows to show in full (2)")
    parser.add_argument("--html", metavar="FILE", help="write the same as a page")
    options, keys = parser.parse_known_args(arguments)
    with clear_exit():
        config = load(options.config, parse(keys)[1], origin="command line")
        if config.method in (*SEVERAL, "pretrain"):
            raise UserError(
                f"{options.config}: give the config of a loop that begins with a trained model, not of {module_of(config.method)}"
            )
        show(inspect(config), config, options.rows, options.html)


def inspect(config: Any, rows: list[dict] | None = None) -> Inspection:
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
        run.progress.say, run.num_steps = lines.append, 1
        made = {
            "sft": _sft, "distill": _distill, "dpo": _dpo, "simpo": _simpo, "kto": _kto, "reward": _reward, "grpo": _rollout, "ppo": _rollout,
        }[config.method]  # fmt: skip
        return replace(made(config, rows, run), lines=[line for line in lines if not line.startswith("preflight")])


# ---------------------------------------------------------------- each loop's first step


def _sft(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import sft
    from losses.weights import step_total, token_weights
    from posttrain.models import no_dropout
    from posttrain.tokens.batch import collate, collate_packed

    s, how = sft.start(config, run, rows), config.sft.length_weighting
    no_dropout(s.model)
    window = next(run.windows(s.examples, s.pack_to))
    total = step_total((row.num_active for micro in window for row in micro), how)
    batch = (collate if s.pack_to is None else collate_packed)(window[0], s.tokenizer.pad_token_id).to(run.device)
    names = ["row" if s.pack_to is None else f"{len(row.examples)} rows packed" for row in window[0]]
    return Inspection(
        s.tokenizer, batch, [len(row) for row in window[0]], names, f"{how} weighting, total {total:g} in the step",
        weights=token_weights(batch.active, how, total=total), logps=_said(s.policy, batch, run),
    )  # fmt: skip


def _dpo(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import dpo
    from posttrain.tokens.batch import collate
    from posttrain.tokens.examples import both_sides

    s = dpo.start(config, run, rows)
    window = next(run.windows(s.pairs))
    items, counts = both_sides(window[0]), f"{_one_of(window, 'pair')}, by the sums of its log-probs"
    if config.dpo.sft_weight:
        chosen = sum(pair.chosen.num_active for micro in window for pair in micro)
        weight = config.dpo.sft_weight
        counts += f"; beside it each chosen token counts {weight:g}/{chosen:g} in the NLL (dpo.sft_weight)"
    batch = collate(items, s.tokenizer.pad_token_id).to(run.device)
    said, of_reference = _said(s.policy, batch, run), _said(s.reference, batch, run)
    lengths = [len(item) for item in items]
    return Inspection(
        s.tokenizer, batch, lengths, _sides(window[0]), counts, logps=said, ref_logps=of_reference
    )  # fmt: skip


def _distill(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    """The given answers; with distill.on_policy, which of them the student is asked to answer itself."""
    from loops import distill
    from losses.weights import token_weights
    from posttrain.models import CompletionLogps
    from posttrain.rollouts.own_answers import chosen
    from posttrain.tokens.batch import collate

    s, share, seed = distill.start(config, run, rows), config.distill.on_policy, config.training.seed
    window = next(run.windows(s.examples, of_step=lambda step: chosen(step, share, s.room, seed=seed, step=0)))
    batch = collate([row.example for row in window[0]], s.tokenizer.pad_token_id).to(run.device)
    names = ["row" if row.draw is None else "row, in whose place the student's own answer stands" for row in window[0]]
    total = sum(row.example.num_active for micro in window for row in micro)
    return Inspection(
        s.tokenizer, batch, [len(row) for row in window[0]], names,
        f"token weighting, total {total:g} in the step" + ", before own answers take the place of given ones" * (share > 0),
        weights=token_weights(batch.active, total=total), logps=_said(CompletionLogps(s.model, like=s.student), batch, run),
    )  # fmt: skip


def _simpo(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import simpo
    from posttrain.tokens.batch import collate
    from posttrain.tokens.examples import both_sides

    s = simpo.start(config, run, rows)
    window = next(run.windows(s.pairs))
    items, counts = both_sides(window[0]), f"{_one_of(window, 'pair')}, by the means of its log-probs per token"
    if config.simpo.loss == "orpo":
        chosen = sum(pair.chosen.num_active for micro in window for pair in micro)
        counts += f"; beside it each chosen token counts 1/{chosen:g} in the NLL"
    batch = collate(items, s.tokenizer.pad_token_id).to(run.device)
    lengths = [len(item) for item in items]
    return Inspection(s.tokenizer, batch, lengths, _sides(window[0]), counts, logps=_said(s.policy, batch, run))


def _kto(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import kto
    from posttrain.tokens.batch import collate
    from posttrain.tokens.mismatched import mismatched

    s = kto.start(config, run, rows)
    window = next(run.windows(s.examples, of_step=lambda step: mismatched(step, s.limit)))
    items = [row.example for row in window[0]]
    names = ["judged good" if row.desirable else "judged bad" for row in window[0]]
    batch = collate(items, s.tokenizer.pad_token_id).to(run.device)
    said, of_reference = _said(s.policy, batch, run), _said(s.reference, batch, run)
    counts = f"{_one_of(window, 'row')}, by the sum of its log-probs"
    lengths = [len(item) for item in items]
    return Inspection(s.tokenizer, batch, lengths, names, counts, logps=said, ref_logps=of_reference)


def _reward(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import reward
    from posttrain.tokens.examples import both_sides

    s, outcome = reward.start(config, run, rows), config.reward.loss == "outcome"
    window = next(run.windows(s.examples))
    items = [item.example for item in window[0]] if outcome else both_sides(window[0])
    names = [f"label {item.label:g}" for item in window[0]] if outcome else _sides(window[0])
    counts = f"{_one_of(window, 'row' if outcome else 'pair')}, by the scores at the end of its answers"
    batch = reward.to_batch(window[0], s.tokenizer.pad_token_id).to(run.device)
    scores = s.policy(batch).tolist()
    return Inspection(s.tokenizer, batch, [len(item) for item in items], names, counts, scores=scores)


def _rollout(config: Any, rows: list[dict] | None, run: Any) -> Inspection:
    from loops import grpo, ppo
    from losses.weights import step_total, token_weights
    from posttrain.rollouts.answers import lay_out

    rl, is_grpo = getattr(config, config.method), config.method == "grpo"
    s = (grpo if is_grpo else ppo).start(config, run, rows)
    run.num_steps = run.steps_for_prompts(s.prompts, rl)  # a reward function may ask how long the run is
    number, asked, own = next(run.prompt_windows(s.prompts, rl.prompts_per_step))
    if is_grpo:
        policy = s.policy
        answers, _ = grpo.roll_out(s, policy, number, asked, own)
        answers, _ = grpo.credit(s, policy, answers)
    else:
        policy = s.actor_critic
        answers, _, _ = ppo.roll_out(s, policy, number, asked, own, rl.kl_coef)
    window = next(run.minibatches(answers, own, len(asked), rl))
    how = rl.length_weighting if is_grpo else "token"
    lengths = [answer.example.num_active for micro in window for answer in micro]
    total = step_total(lengths, how, longest=rl.max_new_tokens)
    batch = lay_out(window[0], s.tokenizer.pad_token_id).to(run.device)
    return Inspection(
        s.tokenizer, batch, [len(answer) for answer in window[0]], [_told(answer, rl, is_grpo) for answer in window[0]],
        f"{how} weighting, total {total:g} in the step", weights=token_weights(batch.active, how, total=total),
        logps=_said(policy, batch, run, rl.temperature), ref_logps=None if s.reference is None else batch["ref_logps"],
    )  # fmt: skip


def _told(answer: Any, rl: Any, is_grpo: bool) -> str:
    """What the loop makes of a sampled answer."""
    if is_grpo:
        advantages = answer.columns["advantages"]
        if rl.learns_from_rewards:
            name = f"reward {answer.reward:g}, advantage {advantages[0].item():+.2f}"
        else:
            name = f"mean advantage {advantages.mean().item():+.2f}" if len(advantages) else "no advantage"
        cut_off = " and left out of the loss" if rl.mask_truncated else ""
    else:
        name, cut_off = f"score {answer.reward:g}", ""
        if rl.truncated == "bootstrap":
            cut_off = " (the critic's value counts instead of it)"
        elif rl.truncation_penalty is not None:
            cut_off = f" ({rl.truncation_penalty:g} counts instead of it)"
    return name if answer.finished else f"{name}, cut off{cut_off}"


def _sides(pairs: list) -> list[str]:
    return [f"{side} {i + 1}" for side in ("chosen", "rejected") for i in range(len(pairs))]


def _one_of(window: list[list], what: str) -> str:
    return f"a {what} counts 1/{sum(item.counts for micro in window for item in micro):g} of the step"


def _said(module: Any, batch: Any, run: Any, temperature: float = 1.0) -> Any:
    with run.parallel.autocast():
        return module(batch, temperature)[0]


# ---------------------------------------------------------------- showing it

COLOURS = {"prompt": "cyan", "completion": "bold green", "padding": "bright_black"}


def kinds(inspection: Inspection, row: int) -> list[str]:
    """Of each token of a row: prompt, completion (it is learned, or was sampled), padding."""
    learned, length = inspection.batch.completion_mask[row].tolist(), inspection.lengths[row]
    return ["completion" if c else "prompt" if i < length else "padding" for i, c in enumerate(learned)]


def show(inspection: Inspection, config, shown: int, html: str | None) -> None:
    """On the terminal in colour, and, if asked for, the same as a page."""
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
        pieces = _pieces(tokenizer, ids)
        for piece, k in zip(pieces, kind, strict=True):
            text.append(piece.replace("\n", "⏎\n") if k != "padding" else "·", COLOURS[k])
        console.print(text)
        learned = tokenizer.decode([t for t, k in zip(ids, kind, strict=True) if k == "completion"])
        console.print(Text(f"learned: {learned!r}"))
        columns = {"weight": inspection.weights, "log π": inspection.logps, "log π_ref": inspection.ref_logps}
        columns = {name: values for name, values in columns.items() if values is not None}
        table = Table("position", "id", "token", *columns, box=None, pad_edge=False)
        for i, (token, piece, k) in enumerate(zip(ids, pieces, kind, strict=True)):
            if k == "completion" and i:
                cells = [
                    f"{values[row, i - 1].item():.{5 if name == 'weight' else 3}f}" for name, values in columns.items()
                ]
                # Text: [/INST] is no markup
                table.add_row(str(i), str(token), Text(repr(piece)), *cells)
        console.print(table)
    if len(batch) > shown:
        console.print(Text(f"\n… and {len(batch) - shown} more rows (--rows N shows more)"))


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token. SentencePiece's own space is seen only behind another token."""
    alone = [tokenizer.decode([token]) for token in ids]
    both = [tokenizer.decode(ids[i - 1 : i + 1]) for i in range(1, len(ids))]
    return alone[:1] + [
        two.removeprefix(before) if two.startswith(before) else own
        for two, before, own in zip(both, alone, alone[1:], strict=False)
    ]


if __name__ == "__main__":
    main()
