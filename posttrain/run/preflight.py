"""Preflight: what must hold before the first update, or the run would end with exit code 0 and a dead model.

Each check costs no extra pass and draws no random number, can be switched off in the config (preflight.NAME: false),
and says in one line what was found. What passed is told after the first step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.tokens import template


class Preflight:
    """Of one run: the switches, and what has passed."""

    def __init__(self, switches, say: Callable[[str], None]):
        self.switches, self.say, self.lines = switches, say, []
        self.sampled: list[tuple[Tensor, Tensor, Tensor]] = []  # of the first step, until it is compared (sampler)

    def on(self, name: str) -> bool:
        """Is this check to be made? (Not every method has every check.)"""
        return bool(getattr(self.switches, name, False))

    def verdict(self, name: str, problem: str | None, passed: str) -> None:
        if problem is not None:
            raise UserError(f"preflight: {problem} (to train all the same: --preflight.{name} false)")
        if passed not in self.lines:  # asked of every micro-batch, told once
            self.lines.append(passed)

    def report(self) -> None:
        off = [name for name in type(self.switches).model_fields if not getattr(self.switches, name)]
        if self.lines:
            self.say(f"preflight passed: {'; '.join(self.lines)}")
        if off:
            self.say(f"preflight switched off: {', '.join(off)}")
        self.lines = []


def rows(run, encoded) -> None:
    """Every row has at least one supervised token; a row without adds nothing and hides that the mask is wrong."""
    items = encoded.items if isinstance(encoded.items, list) else []  # of a stream: each window's rows are counted
    if not run.preflight.on("rows") or not items:
        return
    several = "s" * (len(items) != 1)
    empty = [i for i, item in enumerate(items) if not _supervised(item)]
    left_out = encoded.encoder.counts.dropped + len(encoded.bad)
    run.preflight.verdict(
        "rows",
        f"{len(empty):,} of {len(items):,} rows have no supervised token, first {encoded.rows.where(empty[0])}: nothing can be learned from "
        "them" if empty else None,
        f"{len(items):,} row{several}, each with a supervised token ({left_out:,} left out, {left_out / (left_out + len(items)):.1%})",
    )  # fmt: skip


def _supervised(item) -> bool:
    sides = [getattr(item, name) for name in ("chosen", "rejected", "example") if hasattr(item, name)] or [item]
    return all(side.num_active > 0 for side in sides)


def gradients(run, policy: nn.Module) -> None:
    """After the first backward pass: every trainable tensor received a finite gradient."""
    if not run.preflight.on("gradients"):
        return
    trained = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    bad = [n for n, p in trained if p.grad is None or not torch.isfinite(_local(p.grad)).all()]
    run.preflight.verdict(
        "gradients",
        f"{len(bad)} trainable tensors got no finite gradient, first {bad[0]}: they would never learn, or spoil the update. Is a layer "
        "unused, or the input of a checkpointed block detached?" if bad else None,
        f"a finite gradient for each of {len(trained)} trainable tensors",
    )  # fmt: skip


def why_not_finite(run, policy: nn.Module) -> str:
    """What to do about a loss or a gradient that is NaN or infinite."""
    broken = [n for n, p in policy.named_parameters() if not torch.isfinite(_local(p)).all()]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return f"{broken[0]}{more} held NaN or infinity before: is what the model was loaded from whole?"
    where = "the rewards" if run.config.method in ("grpo", "ppo") else "the rows"
    return f"{'Lower training.learning_rate, or look' if run.step else 'Look'} at {where} of this step"


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def start(run, loss: float, expected: float) -> None:
    """A reward model's first loss is what a head of zeros gives, ln 2."""
    if not run.preflight.on("start"):
        return
    off = not abs(loss - expected) < 1e-4  # a NaN is off, too
    run.preflight.verdict(
        "start",
        f"the loss of the first step is {loss:.6f}, not {'ln 2 = ' * (expected == math.log(2))}{expected:.6f}: the head does not "
        "start at 0, or rows are lost" if off else None,
        f"the loss starts at {loss:.4f}",
    )  # fmt: skip


def reference(run, logps: Tensor, ref_logps: Tensor, active: Tensor, *, same_rows: bool) -> None:
    """Before anything has moved, the reference says of each answer what the policy says: logps, ref_logps [R] of whole
    answers, active [R, T]. same_rows: it read them beside the same others, so not even the rounding differs.

    Row by row: margins off by N(0, 2) nats move the mean loss from 0.693 to 0.703 only. What is allowed grows with the
    square root of the length, as sums of rounding errors do: nats per √token. Beside other rows bf16 rounds otherwise,
    on a few answers by much (0.2 on one that a real model finds unlikely, 0.06 over its batch): there one may be off by
    0.5, and the root of the mean square by 0.12."""
    if not run.preflight.on("start"):
        return
    most, together = (2e-3, None) if run.exact else (0.02, None) if same_rows and run.rows_are_apart else (0.5, 0.12)
    tokens = active.sum(-1)
    gap = torch.where(tokens > 0, (logps - ref_logps).abs(), 0.0)
    per_root = gap / tokens.clamp(min=1).sqrt()  # nats per √token
    worst, spread = int(per_root.argmax()), per_root.square().mean().sqrt()
    allowed = f"{most * tokens[worst].sqrt():.2g} allowed"
    over_all = "" if together is None else f", by {spread:.2g} nats per √token over all of them ({together} allowed)"
    problem = (
        f"policy and reference differ by {gap[worst]:.2g} nats on an answer of {tokens[worst]} tokens ({allowed}){over_all} before "
        "anything has moved: the reference is not the policy as it was (dropout left on, another adapter, or moved weights)"
    )
    fine = bool((per_root <= most).all()) and (together is None or bool(spread <= together))  # a NaN is not
    run.preflight.verdict("start", None if fine else problem, "policy and reference say the same of every answer")


def at_margin_0(run, loss: float, expected: float) -> None:
    """A preference loss begins where its own formula is while nothing has moved: ln 2 of DPO, 25 of IPO with β = 0.1.
    Policy and reference have been compared row by row before (reference): what is off here is how the rows are counted.

    Not asked where they are rounded differently: what a square makes of that is no mistake."""
    if not run.preflight.on("start") or not run.exact:
        return
    off = not abs(loss - expected) <= 0.01 * abs(expected)  # a NaN is off, too
    run.preflight.verdict(
        "start",
        f"the loss of the first step is {loss:.6f}, not {expected:.6f}, which it is by its formula where policy and reference are the "
        "same: are pairs lost or counted twice, or weights that do not add up to 1?" if off else None,
        f"the loss starts at {loss:.4f}",
    )  # fmt: skip


def sampler(run, logps: Tensor, sampler_logps: Tensor, entropy: Tensor, active: Tensor) -> None:
    """A micro-batch of the first step, [B, T] each. What the trainer says of the sampled tokens is compared when all of
    them are there (sampled_alike): of a model that is sure of most tokens, those of one micro-batch are few."""
    if run.preflight.on("sampler") and active.any():
        run.preflight.sampled.append((logps[active], sampler_logps[active], entropy.detach()[active]))


def sampled_alike(run) -> None:
    """Before the first update: the trainer gives the tokens the log-probs they were sampled with, else it is not on
    policy."""
    if not run.preflight.sampled:
        return
    logps, sampler_logps, entropy = (torch.cat(parts) for parts in zip(*run.preflight.sampled, strict=True))
    run.preflight.sampled = []
    problem = disagreement(logps, sampler_logps, entropy, torch.ones_like(logps, dtype=torch.bool), exact=run.exact)
    run.preflight.verdict(
        "sampler",
        problem and f"sampler and trainer disagree {problem}: the run would not be on policy (dropout left on, another temperature, or "
        "a mask or position that differs)",
        f"sampler and trainer agree to {'1e-3' if run.exact else '0.05'} nats",
    )  # fmt: skip


def disagreement(logps: Tensor, sampler_logps: Tensor, entropy: Tensor, active: Tensor, *, exact: bool) -> str | None:
    """How trainer and sampler disagree, four [B, T], or None. exact: both in float32.

    bf16 rounds both sides, each in its own way, so single tokens differ. Three numbers tell that from a difference in
    what is computed: how far tokens are off on average, whether they are off to one side, and whether rare tokens are
    off to one side and common ones to the other: the slope of the gap over log π + H. It is τ_sampler/τ_trainer − 1,
    to first order, and rounding has none."""
    gap, surprise = (logps - sampler_logps)[active].double(), (sampler_logps + entropy.detach())[active].double()
    spread, worst = gap.abs().mean().item(), gap.abs().max().item()
    # Answers to one prompt begin alike, and what is the same token in the same place is rounded the same way: once.
    gap, surprise = torch.stack([gap, surprise]).mul(1e3).round().unique(dim=1) / 1e3
    mean, of_mean = gap.mean().item(), (gap.square().mean() / len(gap)).sqrt()
    squares = surprise.square().sum().clamp(min=1e-9)
    slope = (surprise * gap).sum() / squares
    # Its standard error, where noise differs from token to token and few of them decide (HC3, MacKinnon & White, 1985):
    # of a model that is sure of most tokens, rounding moves the others alone.
    residual = (gap - slope * surprise) / (1 - surprise.square() / squares).clamp(min=1e-3)
    error = (surprise * residual).square().sum().sqrt() / squares
    # An error made of few numbers is itself uncertain, as in Student's t: how many tokens decide? The 8 is from trials:
    # of healthy rollouts that three tokens decide fewer than one in a hundred is refused.
    deciding = squares.square() / surprise.pow(4).sum().clamp(min=1e-9)
    if not (spread < (1e-3 if exact else 0.05) and (worst < 1e-2 or not exact)):  # a NaN is off, too
        return f"by {spread:.2g} nats on average, by up to {worst:.2g}, on the log-prob of a sampled token"
    if abs(mean) > 0.005 + 4 * of_mean:
        return f"by {mean:+.2g} nats on the log-prob of a sampled token, all to one side"
    if abs(slope) > 0.005 + 4 * (1 + 8 / deciding.square()) * error:
        return f"as if it had sampled at {1 + slope:.3f} times the temperature"
    return None


def stop_token(run, model: nn.Module, tokenizer) -> None:
    """The saved model will stop: its stop tokens exist, and, where answers are given, the first step teaches one."""
    if not run.preflight.on("stop_token"):
        return
    stops, rows_of_embeddings = template.stop_ids(tokenizer), model.get_input_embeddings().weight.shape[0]
    names = ", ".join(tokenizer.convert_ids_to_tokens(stops))
    # how many stop tokens carry a loss in the first step, over all processes; None where answers are sampled
    supervised = run.meter.count_of_all("p_stop") if run.config.method in ("sft", "dpo", "simpo", "kto") else None
    problem = None
    if max(stops) >= rows_of_embeddings:
        problem = (
            f"the stop tokens {names} lie outside the model's {rows_of_embeddings} embeddings: it can never say them"
        )
    elif supervised is not None and supervised == 0:
        problem = (
            f"no row of the first step teaches a stop token ({names}): the model would never learn to end its answers. Is the end of "
            "the turn masked, as padding perhaps?"
        )
    run.preflight.verdict("stop_token", problem, f"answers end with {names}")


def unfinished(run, finished: float, more: str = "") -> None:
    """RL's first rollout: a warning where no answer ended. finished: how many did, over all processes."""
    if finished == 0:
        limit = f"{run.config.method}.max_new_tokens"
        run.say(
            f"warning: no answer of the first rollout ended within {limit}: the reward may see none of them whole{more}"
        )


def dead_groups(run, metrics: dict[str, tuple], mask_truncated: bool) -> None:
    """GRPO's first rollout: where all answers of every group have one reward, nothing can be learned. A warning, with
    the reason."""
    if not run.preflight.on("dead_groups"):
        return
    names = [name for name in ("dead_groups", "finished", "reward", "parse_failures") if name in metrics]
    share = {
        name: run.sum_over_processes(metrics[name][0]) / run.sum_over_processes(metrics[name][1]) for name in names
    }
    unfinished(run, share["finished"], ", and with mask_truncated nothing is learned" * mask_truncated)
    if "dead_groups" not in share:  # a teacher has something to say of every token
        return
    if share["dead_groups"] < 1:
        run.preflight.lines.append(f"{1 - share['dead_groups']:.0%} of the groups are alive")
        return
    if share.get("parse_failures", 0) > 0.5:
        reason = f"{share['parse_failures']:.0%} of the answers hold no number that the reward can read: teach the format first (SFT)"
    elif math.isclose(share["reward"], 0, abs_tol=1e-9):
        reason = (
            "all rewards are 0: the problems are too hard for this model, or the reward never sees what it looks for"
        )
    else:
        reason = f"the mean reward is {share['reward']:.3g}: the problems are too easy, or the reward does not tell answers apart"
    run.say(
        "warning: every group of the first rollout is dead (all its answers got the same reward), so every advantage is 0 and nothing "
        f"can be learned: {reason}"
    )
