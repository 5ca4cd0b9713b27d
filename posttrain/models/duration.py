"""How long an optimiser step takes: its work, counted from a config, the shapes of its model and the lengths of its
rows, over what a machine was measured to do (posttrain/models/rates.py).

A product of N tokens with P weights is 2 P N floating-point operations (FLOP). For N tokens in all:

    forward    2 N (weights in the layers)  +  4 (layers) (width of the queries) (pairs of tokens that are compared)
    backward   as much for the gradient of what goes in, and as much again for that of the weights, which LoRA saves;
               attention two and a half times its forward pass, because its weights are made again
    head       2 (hidden size) (vocabulary) a prediction: none of a prompt. Trained: three to four times that, frozen:
               twice (losses/head.py)

What is no product (norms, activations, the softmax over the vocabulary, the optimiser) is counted in the bytes that it
reads and writes. And every operation takes a time to start, which is nearly all that a small one takes: sampling, which
reads all weights for one token of each answer, is made of small ones.

Pairs of tokens are counted as the full square, padding included, as a mask makes attention compute them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

from posttrain.models.memory import Shape
from posttrain.models.rates import Rates
from posttrain.tokens.shared import WORTH_IT

# What is no product, of a block: bytes a token (x the hidden size, x the MLP's width, an adapter's x the hidden size),
# and operations (and an adapter's), forward and backward. Computing in 16 bits, much stays in 32, and is cast.
# Counted in a Llama, torch 2.13, transformers 5.23: python -m benchmarks.block
BLOCK = {
    4: ((162.0, 20.0, 180.0, 34, 28), (383.0, 36.0, 136.0, 67, 31)),
    # An adapter's -57: the base under one is in 16 bits, a trained one in 32 that are cast.
    2: ((180.0, 10.0, 35.0, 48, 32), (413.0, 18.0, -57.0, 87, 29)),
}
# Bytes a prediction, x the vocabulary: the softmax, and its gradient; and the sampler's
FROZEN_HEAD, KEPT_HEAD, MADE_AGAIN, HEAD_ALONE, SAMPLER = 60.0, 87.0, 103.0, 44.0, 42.0
SAMPLER_CALLS = 40  # a token, outside the blocks
OPTIMISER = 40  # bytes a trained parameter: its norm and clipping 12, AdamW 28
ACCUMULATE = 12  # bytes a trained parameter that a micro-batch after the first adds to the gradient


class Fit(NamedTuple):
    """What was measured over what was counted."""

    work: float = 1.0  # of products and bytes: kernels that are less than the best
    start: float = 1.0  # of the start of an operation: modules, autograd, threads that wake up


# By the bytes of a number in the compute type. Fitted on random Llamas of 0.4 to 55 million parameters: python -m
# benchmarks.scaling (and --dtype bfloat16), benchmarks/RESULTS.md
TRAINING = {4: Fit(1.12, 29.8), 2: Fit(1.32, 35.2)}
SAMPLING = {4: Fit(1.22, 13.2), 2: Fit(1.28, 9.0)}


@dataclass(frozen=True)
class Cost:
    """Work, added up."""

    products: float = 0.0  # FLOP, of many tokens at once
    narrow: float = 0.0  # FLOP of products with the two factors of an adapter
    few: float = 0.0  # FLOP of products of few rows, for which the weights come from memory each time
    attention: float = 0.0  # FLOP
    moved: float = 0.0  # bytes
    softmax: float = 0.0  # bytes, over the vocabulary: tensors that no cache holds
    started: float = 0.0  # operations

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Cost:
        return Cost(*(part * times for part in astuple(self)))

    @property
    def flops(self) -> float:
        return self.products + self.narrow + self.few + self.attention

    def seconds(self, rates: Rates, fit: Fit) -> float:
        """Each over its rate; what nothing is done of needs none."""
        pairs = [(getattr(self, name), getattr(rates, name)) for name in RATED]
        return fit.work * sum(part / rate for part, rate in pairs if part) + fit.start * self.started * rates.start


RATED = ("products", "narrow", "few", "attention", "moved", "softmax")


class Row(NamedTuple):
    """What goes through the model: a row's tokens, the predictions that are learned, and the prompt it begins with."""

    tokens: int
    learned: int
    prompt: int = 0
    group: int = 0  # rows of one group have the same prompt


class Laid(NamedTuple):
    """A micro-batch as a model reads it."""

    tokens: float  # padding included
    compared: float  # pairs of a token and one that it looks at


def laid_out(micro: list[Row], share: bool | str = False) -> Laid:
    """Padded to the longest row; or (training.share_prompts) each prompt once, and no padding but in attention.

    >>> rows = [Row(tokens=10, learned=2, prompt=8), Row(tokens=9, learned=1, prompt=8)]
    >>> laid_out(rows), laid_out(rows, True)        # once: 8 + 2 + 1 tokens; 8 x 8, and 2 x 2 looking at 8 + 2
    (Laid(tokens=20, compared=200), Laid(tokens=11, compared=104))
    """
    longest = max(row.tokens for row in micro)
    whole = Laid(len(micro) * longest, len(micro) * longest**2)
    if not share or not all(row.prompt for row in micro):
        return whole
    prompts = {row.group: row.prompt for row in micro}
    once = sum(prompts.values()) + sum(row.tokens - row.prompt for row in micro)
    if share == "auto" and once > WORTH_IT * whole.tokens:
        return whole
    prompt, answer = max(prompts.values()), max(row.tokens - row.prompt for row in micro)
    return Laid(once, len(prompts) * prompt**2 + len(micro) * answer * (prompt + answer))


@dataclass(frozen=True)
class Network:
    """A model, and what is trained of it."""

    shape: Shape  # adapter 0: none
    size: int  # bytes of a number in the compute type
    trained: bool = True  # its weights are; False: its adapter is, or nothing
    checkpointing: bool = False

    @property
    def head_weights(self) -> int:
        return self.shape.hidden * self.shape.vocabulary

    def forward(self, laid: Laid) -> Cost:
        s = self.shape
        attention = 4.0 * s.layers * s.queries * laid.compared
        cost = Cost(2.0 * laid.tokens * s.linear, 2.0 * laid.tokens * s.adapter, attention=attention)
        return cost + self._rest(laid.tokens, 0)

    def backward(self, laid: Laid) -> Cost:
        s = self.shape
        products, narrow = 2.0 * laid.tokens * s.linear * (2 if self.trained else 1), 4.0 * laid.tokens * s.adapter
        attention = 10.0 * s.layers * s.queries * laid.compared
        cost = Cost(products, narrow, attention=attention) + self._rest(laid.tokens, 1)
        return cost + self.forward(laid) if self.checkpointing else cost

    def _rest(self, tokens: float, way: int) -> Cost:
        """What is no product. way: 0 forward, 1 backward."""
        s, adapted = self.shape, self.shape.adapter > 0
        hidden, wide, of_adapter, calls, calls_of_adapter = BLOCK[self.size][way]
        size = (hidden + adapted * of_adapter) * s.hidden + wide * s.intermediate
        return Cost(moved=tokens * s.layers * size, started=s.layers * (calls + adapted * calls_of_adapter))

    def head(self, predictions: float, keep_bytes: float = 0.0) -> Cost:
        """Forward and backward (losses/head.py). A frozen one: forward, and J W. A trained one: forward, the gradients
        of states and weights, and forward again where J does not fit keep_bytes."""
        times, each = 2, FROZEN_HEAD
        if self.trained:
            fits = predictions * self.shape.vocabulary * self.size <= keep_bytes
            times, each = (3, KEPT_HEAD) if fits else (4, MADE_AGAIN)
        return Cost(2.0 * times * predictions * self.head_weights, softmax=self._over_the_vocabulary(predictions, each))

    def head_alone(self, predictions: float) -> Cost:
        """Forward, for log-probs that nothing is learned from."""
        return Cost(2.0 * predictions * self.head_weights, softmax=self._over_the_vocabulary(predictions, HEAD_ALONE))

    def _over_the_vocabulary(self, predictions: float, bytes_each: float) -> float:
        return predictions * self.shape.vocabulary * bytes_each

    def update(self, micro_batches: int) -> Cost:
        """Clip and AdamW, and what the gradients of all micro-batches but the first are added to."""
        parameters = self.shape.parameters if self.trained else self.shape.adapter
        return Cost(moved=float(parameters * (OPTIMISER + ACCUMULATE * (micro_batches - 1))))

    def cast(self) -> Cost:
        """Computing in 16 bits: of a micro-batch, trained weights from 32 and their gradients back."""
        return Cost(moved=12.0 * self.shape.parameters * (self.size < 4 and self.trained))

    def sampling(self, prompts: list[int], group: int, new: int) -> Cost:
        """A rollout (posttrain/rollouts/sampling.py): `group` answers of `new` tokens to prompts of these lengths."""
        s, rows, width = self.shape, len(prompts) * group, max(prompts)
        prefill = self.forward(Laid(len(prompts) * width, len(prompts) * width**2))
        read = rows * (new - 1) * (width + new / 2)  # tokens in the cache, over all steps and rows
        decode = Cost(
            attention=4.0 * s.layers * s.queries * read,
            few=2.0 * (new - 1) * rows * (s.linear + s.adapter + self.head_weights),
            moved=read * s.layers * 2 * s.key_value * self.size,  # keys and values are looked at where they lie
            softmax=self._over_the_vocabulary(rows * new, SAMPLER),
            started=float(new * SAMPLER_CALLS),
        )
        return prefill + decode + self._rest(rows, 0) * (new - 1)


# ---------------------------------------------------------------- of a config


def network(config: Any, shape: Shape, size: int) -> Network:
    """The one that is trained."""
    return Network(shape, size, config.model.adapter == "none", config.model.gradient_checkpointing)


def of_step(
    config: Any, shape: Shape, window: list[list[Row]], size: int, teacher: Shape | None = None
) -> dict[str, Cost]:
    """{part: work} of one optimiser step over these micro-batches, without what is sampled for it (of_rollout).

    A pair is two rows. size: bytes of a number in the compute type. teacher: of distillation; else taken as large as
    the model."""
    method, section, net = config.method, getattr(config, config.method), network(config, shape, size)
    share, budget = getattr(config.training, "share_prompts", False), config.training.logit_budget_mb * 2**20
    bare = replace(shape, adapter=0, rank=0)
    apart, parts = Network(teacher or bare, size, trained=False), {}
    critic = method == "ppo" and section.critic == "separate"

    def add(name: str, *costs: Cost) -> None:
        for cost in costs:
            parts[name] = parts.get(name, Cost()) + cost

    for micro in window:
        laid, learned = laid_out(micro, share), sum(row.learned for row in micro)
        add("forward", net.forward(laid))
        add("backward", net.backward(laid), net.cast())
        if method != "reward":
            add("head", net.head(learned, budget if method != "distill" else float("inf")))
        for name, times in looks(config).items():
            asked = apart if name == "reference" and not has_an_adapter(config.model) else net
            add(name, (asked.forward(laid) + asked.head_alone(learned)) * times)
        if method == "distill":  # all logits, of which those of the answers are taken
            add("teacher", apart.forward(laid), apart.head_alone(laid.tokens))
        if critic:
            add("critic", net.forward(laid) * (1 + 1 / section.inner_epochs), net.backward(laid))
        if method in ("grpo", "ppo") and section.reward_model is not None:
            add("reward model (taken to be as large)", apart.forward(laid) * (1 / section.inner_epochs))
    add("optimiser", net.update(len(window)) * (2 if critic else 1))
    return parts


def has_an_adapter(model: Any) -> bool:
    """Does the reference compute with one? Not where a fresh one is switched off (posttrain/models/reference.py)."""
    return model.reference == "copy" or (model.reference == "auto" and model.adapter_path is not None)


def looks(config: Any) -> dict[str, float]:
    """Passes without gradient that each row of a step goes through, head included: {whose: how often}. Those of a
    rollout are shared by its inner epochs."""
    method, section = config.method, getattr(config, config.method)
    if method == "dpo":
        return {} if section.precompute else {"reference": 1}
    if method == "kto":  # and each answer behind another prompt, for z0
        return {"reference": 2, "answers behind other prompts": 1}
    if method not in ("grpo", "ppo"):
        return {}
    once = 1 / section.inner_epochs
    several = method == "ppo" or section.importance_weights != "none" or section.minibatches * section.inner_epochs > 1
    pays_kl = max(section.kl_coef, getattr(section, "kl_loss_coef", 0)) > 0
    return ({"old log-probs": once} if several else {}) | ({"reference": once} if pays_kl else {})


def of_rollout(config: Any, shape: Shape, prompts: list[int], new: int, size: int) -> Cost:
    """Sampling for one optimiser step: answers of `new` tokens to prompts of these lengths."""
    section, net = getattr(config, config.method), network(config, shape, size)
    if config.method == "distill":
        return net.sampling(prompts, 1, new)
    return net.sampling(prompts, section.group_size, new) * (1 / (section.minibatches * section.inner_epochs))


def seconds(parts: dict[str, Cost], rates: Rates, size: int) -> dict[str, float]:
    """Of each part; what is sampled has a fit of its own. size: bytes of a number in the compute type."""
    fits = {name: (SAMPLING if name.startswith("sampling") else TRAINING)[size] for name in parts}
    return {name: cost.seconds(rates, fits[name]) for name, cost in parts.items()}


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
