"""What the loops will do to a model of yours, tried on it before it is trained (python -m posttrain.doctor --model).

Every check does what a loop does, with the loop's own code, and compares it with another way to the same numbers: plain
transformers, one row at a time. It changes nothing and keeps nothing on disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain import models
from posttrain.errors import UserError, reason
from posttrain.models import lora, quantize, scalar, sharing
from posttrain.models.loading import load_frozen_or_whole, no_dropout
from posttrain.models.saving import save
from posttrain.rollouts.answers import lay_out, sampled
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.run.launch import compute_dtype
from posttrain.run.parallel import Parallel
from posttrain.run.preflight import disagreement
from posttrain.tokens import conversations, template
from posttrain.tokens.batch import Batch, Example, collate, collate_packed, pack

LOOPS = ("sft", "distill", "dpo", "simpo", "kto", "reward", "grpo", "ppo")
LARGE = 10**9  # weights: beyond, what needs a second copy of them is not tried


@dataclass
class Patient:
    """config: of any loop; its model group, training.device and data.chat_template_kwargs are looked at."""

    config: Any
    folder: Path  # for what is saved and loaded again
    device: torch.device = field(init=False)
    compute: torch.dtype = field(init=False)
    parallel: Parallel = field(init=False)
    model: nn.Module = field(init=False)
    tokenizer: Any = field(init=False)
    policy: models.CompletionLogps = field(init=False)
    rows: list[Example] = field(init=False)

    def __post_init__(self) -> None:
        on_cpu = self.config.training.device == "cpu" or not torch.cuda.is_available()
        self.device = torch.device("cpu" if on_cpu else "cuda")
        self.compute = compute_dtype(self.config.model, on_cpu)
        self.parallel = Parallel(self.device, self.autocast)

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def quantised(self) -> bool:
        return quantize.bits_of(self.model) != "none"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.compute, enabled=self.compute != torch.float32)

    def batch(self, rows: list[Example]) -> Batch:
        return collate(rows, self.tokenizer.pad_token_id).to(self.device)

    def logps(self, rows: list[Example]) -> tuple[Tensor, Tensor]:
        """(log-probs of what is learned, one after the other; which row each stands in)"""
        batch = self.batch(rows)
        with self.autocast():
            logps, _ = self.policy(batch)
        return logps[batch.active], batch.active.nonzero()[:, 0]


@dataclass(frozen=True)
class Finding:
    name: str
    problem: str | None
    said: str
    needed: tuple[str, ...]  # by these loops and keys


def examine(config: Any) -> Iterator[Finding]:
    """One finding after the other; after a problem that leaves nothing to try, the last one."""
    with tempfile.TemporaryDirectory() as folder:
        patient = Patient(config, Path(folder))
        for name, check, needed in CHECKS:
            try:
                finding = Finding(name, None, check(patient), needed)
            except (UserError, Wrong, ValueError) as problem:
                finding = Finding(name, str(problem), "", needed)
            except Exception as error:  # whatever a library says
                finding = Finding(name, f"{type(error).__name__}: {reason(error)}", "", needed)
            yield finding
            if finding.problem is not None and check in (loads, survives_conversations):
                return


def verdict(findings: list[Finding]) -> tuple[bool, str]:
    """(can every loop train it, the sentence that says so)."""
    lacking = {need: f.name for f in reversed(findings) if f.problem is not None for need in f.needed}
    can = [loop for loop in LOOPS if loop not in lacking]
    keys = [f"{key} ({name})" for key, name in lacking.items() if key not in LOOPS]
    text = f"{', '.join(can) or 'no loop'} can train this model" + (f"; without {', '.join(keys)}" if keys else "")
    lost = [f"{loop} ({lacking[loop]})" for loop in LOOPS if loop in lacking]
    return not lost, text + (f"; not {', '.join(lost)}" if lost and can else "")


class Wrong(Exception):
    """A check's result is not what it must be."""


def loads(p: Patient) -> str:
    p.model, p.tokenizer, lines = load_frozen_or_whole(p.config.model, p)
    no_dropout(p.model)
    p.policy = models.CompletionLogps(p.model.train())
    how = f"computing in {str(p.compute).removeprefix('torch.')} on {p.device}"
    return "; ".join([f"{type(p.model).__name__}, {p.size:,} weights, {how}", *lines])


def survives_conversations(p: Patient) -> str:
    whole, wrong, thinking = conversations.tried(p.tokenizer, p.config.data.chat_template_kwargs)
    plain = {c.name for c in conversations.conversations("") if c.plain}
    p.rows = [row for rows in whole.values() for row in rows]
    if broken := [f"{name}: {problem}" for name, problem in wrong.items() if name in plain]:
        raise Wrong(f"{len(whole)} of {len(whole) + len(wrong)} are whole; {broken[0]}")
    said = f"{len(whole)} of {len(whole) + len(wrong)} are whole"
    said += "".join(f"; {name} is refused: {problem}" for name, problem in wrong.items())
    if thinking:
        said += "; every answer needs thoughts, for the template opens them (or data.chat_template_kwargs, where it can leave them out)"
    return said


def ends(p: Patient) -> str:
    stops = template.stop_ids(p.tokenizer)
    rows = p.model.get_input_embeddings().weight.shape[0]
    names = ", ".join(p.tokenizer.convert_ids_to_tokens(stops))
    if max(stops) >= rows:
        raise Wrong(f"the stop tokens {names} lie outside the model's {rows} embeddings: it can never say them")
    return f"answers end with {names}, and so will those of what is saved"


@torch.no_grad()
def agrees_with_transformers(p: Patient) -> str:
    """All rows in one padded batch, head in chunks; against plain transformers, one row at a time, nothing padded."""
    ours, _ = p.logps(p.rows)
    theirs = []
    for row in p.rows:
        ids = torch.tensor([row.input_ids], device=p.device)
        with p.autocast():
            logits = p.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logps = logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        theirs.append(logps[torch.tensor(row.completion_mask[1:], device=p.device)])
    return _close(ours, torch.cat(theirs), p, "the log-probs of the rows", "those of plain transformers")


def _close(ours: Tensor, theirs: Tensor, p: Patient, what: str, other: str) -> str:
    gap = (ours.float() - theirs.float()).abs()
    exact = p.compute == torch.float32 and not p.quantised
    if not (gap.mean() < 0.05 and (gap.max() < 1e-3 or not exact)):  # a NaN is not close, either
        raise Wrong(
            f"{what} are off from {other} by {gap.mean():.2g} nats a token on average, by up to {gap.max():.2g}"
        )
    return f"{len(gap)} tokens, {gap.mean():.1g} nats off on average"


def samples(p: Patient) -> str:
    """Two answers to each of four prompts: the log-probs that the sampler gave its tokens against the trainer's."""
    prompts = [row.input_ids[: row.prompt_length] for row in p.rows[:4]]
    uniforms = draw_uniforms(2 * len(prompts), 24, seed=0, step=0)
    stops, pad = template.stop_ids(p.tokenizer), p.tokenizer.pad_token_id
    with p.autocast():
        rollout = sample(
            p.model, prompts, group_size=2, max_new_tokens=24, stop_ids=stops, pad_id=pad, uniforms=uniforms
        )
    batch = lay_out(sampled(rollout, [0.0] * len(rollout.logps)), pad).to(p.device)
    with torch.no_grad(), p.autocast():
        logps, entropy = p.policy(batch)
    exact = p.compute == torch.float32 and not p.quantised
    problem = disagreement(logps, batch["sampler_logps"], entropy, batch.active, exact=exact)
    if problem is not None:
        raise Wrong(f"sampler and trainer disagree {problem}: RL would not be on policy")
    return f"sampler and trainer agree on {int(batch.active.sum())} tokens of {len(rollout.logps)} answers"


@torch.no_grad()
def packs(p: Patient) -> str:
    p.policy.find_a_way_to_pack()
    alone, row_of = p.logps(p.rows)
    packed = pack(p.rows, sum(map(len, p.rows)))
    batch = collate_packed(packed, p.tokenizer.pad_token_id).to(p.device)
    with p.autocast():
        logps, _ = p.policy(batch)
    order = sorted(range(len(p.rows)), key=lambda i: len(p.rows[i]), reverse=True)  # as pack lays them
    expected = torch.cat([alone[row_of == i] for i in order])
    return _close(logps[batch.active], expected, p, "packed rows", "the same rows alone")


def scores(p: Patient) -> str:
    """The backbone under a head of zeros: every score is 0."""
    with torch.no_grad(), p.autocast():
        given = scalar.CompletionScores(scalar.as_scorer(p.model))(p.batch(p.rows[:2]))
    if given.tolist() != [0.0, 0.0]:
        raise Wrong(f"a fresh head must say 0 of every answer, and says {given.tolist()}")
    return "a head for scores and values fits its last layer"


def every_weight_learns(p: Patient) -> str:
    if p.quantised:
        return "not tried: quantised weights are frozen"
    if p.size > LARGE:
        return f"not tried: gradients of {p.size:,} weights"
    p.policy.zero_grad()
    (-p.logps(p.rows[:2])[0].mean()).backward()
    said = _gradients(p.model)
    p.policy.zero_grad()
    return said


def _gradients(model: nn.Module) -> str:
    learning = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    if broken := [name for name, grad in learning.items() if grad is not None and not grad.isfinite().all()]:
        raise Wrong(f"the gradient of {broken[0]} is not finite")
    still = [name for name, grad in learning.items() if grad is None]
    if len(still) == len(learning):
        raise Wrong("no weight gets a gradient")
    return f"{len(learning) - len(still)} of {len(learning)} tensors get a finite gradient" + (
        f" (none: {still[0]} …)" if still else ""
    )


@torch.no_grad()
def is_saved(p: Patient) -> str:
    """As the loops save it, loaded by plain transformers: with the same attention the same logits, prompts and ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if p.quantised:
        return "not tried: of quantised weights only an adapter is saved"
    need, free = 1.1 * sum(w.numel() * w.element_size() for w in p.model.parameters()), shutil.disk_usage(p.folder).free
    if p.size > LARGE or need > free:
        return f"not tried: {need / 2**30:.1f} GiB to write and read again"
    save(p.model, p.tokenizer, p.folder / "model")
    again = AutoModelForCausalLM.from_pretrained(p.folder / "model", dtype="auto").to(p.device).eval()
    again.set_attn_implementation(sharing.attention_of(p.model))  # another rounds otherwise
    tokenizer = AutoTokenizer.from_pretrained(p.folder / "model")
    ids = torch.tensor([p.rows[0].input_ids], device=p.device)
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if not torch.equal(again(**asked).logits, p.model.eval()(**asked).logits):
        raise Wrong("saved and loaded again by transformers, it gives other logits")
    hello = [{"role": "user", "content": "Hello."}]
    shown = {"template_kwargs": p.config.data.chat_template_kwargs}
    if template.prompt_ids(tokenizer, hello, **shown) != template.prompt_ids(p.tokenizer, hello, **shown):
        raise Wrong("the saved tokenizer, loaded again, gives another prompt")
    if (stops := again.generation_config.eos_token_id) != template.stop_ids(p.tokenizer):
        raise Wrong(f"saved and loaded again, it ends with {stops} instead of {template.stop_ids(p.tokenizer)}")
    p.model.train()
    return "plain transformers loads what is saved: equal logits, prompts and ends"


def learns_through_lora(p: Patient) -> str:
    """A fresh adapter changes nothing; a step changes it; saved and loaded again, it says the same."""
    rows = p.rows[:2]
    with torch.no_grad():
        before, _ = p.logps(rows)
    base = p.config.model.name
    adapted = lora.add(p.model, p.config.model.lora, base)
    p.policy.model = adapted.train()
    no_dropout(adapted)
    fresh, _ = p.logps(rows)
    if not torch.equal(fresh.detach(), before):
        raise Wrong(
            f"a fresh adapter changes log-probs by up to {(fresh - before).abs().max():.2g}: it must change nothing"
        )
    (-fresh.mean()).backward()
    said = _gradients(adapted)
    with torch.no_grad():
        for weight in (w for w in adapted.parameters() if w.grad is not None):
            weight -= 1e-2 * weight.grad / weight.grad.norm().clamp(min=1e-12)
        after, _ = p.logps(rows)
        if torch.equal(after, before):
            raise Wrong("a step of the adapter changes no log-prob")
        save(adapted, p.tokenizer, p.folder / "adapter")
        p.policy.model = lora.go_on(adapted.unload(), str(p.folder / "adapter"), base).train()
        no_dropout(p.policy.model)
        again, _ = p.logps(rows)
    if not torch.equal(again, after):
        raise Wrong(f"the saved adapter, loaded again, is off by up to {(again - after).abs().max():.2g} nats")
    return f"{said}; saved and loaded again it says the same"


CHECKS: tuple[tuple[str, Callable[[Patient], str], tuple[str, ...]], ...] = (
    ("loading", loads, LOOPS),
    ("conversations", survives_conversations, LOOPS),
    ("ends", ends, LOOPS),
    ("log-probs", agrees_with_transformers, LOOPS),
    ("sampling", samples, ("grpo", "ppo", "distill.on_policy")),
    ("packing", packs, ("training.packing",)),
    ("scores", scores, ("reward", "ppo")),
    ("gradients", every_weight_learns, LOOPS),
    ("saving", is_saved, LOOPS),
    ("lora", learns_through_lora, ("model.adapter: lora",)),  # last: it puts an adapter on the model
)
