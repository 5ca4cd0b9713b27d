"""A model that is evaluated: asked prompts, or read a text. The only place where a suite meets a model.

Batch size and padding change nothing (in float32): answers are those that a prompt gets alone, log-probs those that a
text has alone. So the Subject of a run with several processes deals its rows out to them and gathers what they say, and
no suite knows. Every process has to call it, with the same rows, at the same time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain import models
from posttrain.errors import UserError
from posttrain.rollouts.asking import ask
from posttrain.rollouts.sampling import Rollout
from posttrain.run import processes
from posttrain.run.fingerprints import fingerprint
from posttrain.tokens import template
from posttrain.tokens.batch import Batch, Example, collate

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt."""

    text: str  # without the stop token
    finished: bool  # it ended its turn; False: max_new_tokens ran out
    tokens: int  # the stop token included
    logp: float  # of the whole answer, in nats, at the temperature it was sampled at

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "finished": self.finished, "tokens": self.tokens, "logp": round(self.logp, 4)}


@dataclass
class Subject:
    """A loaded model (of a run, or by load()) with how it computes. Its train flag is as it was after every call."""

    name: str
    model: nn.Module
    tokenizer: Any
    compute: torch.dtype = torch.float32
    batch_size: int = 8
    seed: int = 0
    others: dict[str, Subject] = field(default_factory=dict)  # that were loaded beside it, shared between Subjects
    share: tuple[int, int] = (0, 1)  # number of this process, how many there are
    bar: bool = True  # show one while it answers (on a terminal)

    # ------------------------------------------------------------ loading

    @classmethod
    def load(
        cls, name: str, *, device: torch.device | str = "cpu", compute: torch.dtype = torch.float32, batch_size: int = 8,
        seed: int = 0, others: dict[str, Subject] | None = None, key: str = "--model",
    ) -> tuple[Subject, list[str]]:  # fmt: skip
        """Any name the loops load: a hub id, a folder, an adapter (merged), an embedded one. And lines to print."""
        model, tokenizer, lines = models.load(name, dtype=compute, device=device, key=key)
        return cls(name, model, tokenizer, compute, batch_size, seed, {} if others is None else others), lines

    def beside(self, name: str, key: str) -> Subject:
        """Another model, e.g. a base or a judge: loaded once, on the same device and in the same precision."""
        if name not in self.others:
            device = next(self.model.parameters()).device
            self.others[name], _ = Subject.load(
                name, device=device, compute=self.compute, batch_size=self.batch_size, seed=self.seed, others=self.others,
                key=key,
            )  # fmt: skip
            self.others[name].share, self.others[name].bar = self.share, self.bar
        return self.others[name]

    def about(self) -> dict[str, Any]:
        """For results.json."""
        size = sum(p.numel() for p in self.model.parameters())
        return {"fingerprint": fingerprint(self.model), "parameters": size}

    # ------------------------------------------------------------ asking

    def prompt_ids(
        self, prompt: str | Messages, system: str | None = None, *, tools: list | None = None,
        template_kwargs: dict | None = None,
    ) -> list[int]:  # fmt: skip
        """Through the chat template. system: put before a prompt without a system message."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        try:
            return template.prompt_ids(self.tokenizer, messages, tools=tools, template_kwargs=template_kwargs)
        except UserError:
            raise
        except ValueError as problem:
            raise UserError(f"{self.name}: {messages[-1]['content']!r:.60} cannot be asked: {problem}") from None

    def ask(
        self, prompts: Sequence[str | Messages], *, max_new_tokens: int, samples: int = 1, temperature: float = 0.0,
        system: str | None = None,
    ) -> list[list[Answer]]:  # fmt: skip
        """`samples` answers to each prompt, greedy by default; at a temperature drawn by the seed."""
        ids = [self.prompt_ids(prompt, system) for prompt in prompts]
        rollout = self.rollout(ids, max_new_tokens=max_new_tokens, samples=samples, temperature=temperature)
        return self.answers(rollout, samples)

    def rollout(
        self, ids: list[list[int]], *, max_new_tokens: int, samples: int = 1, temperature: float = 0.0
    ) -> Rollout:
        """ask() with token ids, for suites that need the tokens themselves: prompt by prompt, `samples` each."""
        for number, prompt in enumerate(ids, start=1):
            if self.limit is not None and len(prompt) + max_new_tokens > self.limit:
                raise UserError(
                    f"{self.name}: prompt {number} has {len(prompt)} tokens, and with max_new_tokens = {max_new_tokens} more that "
                    f"is above the {self.limit} that the model reads: lower max_new_tokens, or leave the prompt out"
                )
        process, count = self.share
        own = range(process, len(ids), count)
        said = ask(
            self.model, self.tokenizer, ids, max_new_tokens=max_new_tokens, group_size=samples, temperature=temperature,
            seed=self.seed, batch_size=max(1, self.batch_size // samples), label=self.name if self.bar else None, own=own,
        )  # fmt: skip
        said = said if count == 1 else _gathered(said, ids, own, samples)
        self._refuse_nan(said.logps)
        return said

    def answers(self, rollout: Rollout, samples: int) -> list[list[Answer]]:
        """The rollout's answers as text, prompt by prompt."""
        texts = rollout.texts(self.tokenizer)
        said = [
            Answer(text.strip(), done, len(logps), float(logps.sum()))
            for text, done, logps in zip(texts, rollout.finished, rollout.logps, strict=True)
        ]
        return [said[i : i + samples] for i in range(0, len(said), samples)]

    # ------------------------------------------------------------ reading

    @property
    def limit(self) -> int | None:
        """Tokens that the model reads at most; None: its config names no limit."""
        return models.reads_at_most(self.model)

    def logps(self, examples: Sequence[Example]) -> list[Tensor]:
        """Of each row the log-probs of what its completion_mask marks (the first token is predicted by nothing), in
        nats, float32, on the CPU."""
        for number, example in enumerate(examples, start=1):
            if self.limit is not None and len(example) > self.limit:
                raise UserError(
                    f"{self.name}: row {number} has {len(example)} tokens, the model reads at most {self.limit}"
                )

        def look(batch: Batch) -> list[Tensor]:
            logps, _ = self._completion_logps(batch)
            return [of_row[active].float() for of_row, active in zip(logps, batch.active, strict=True)]

        found = self.of_rows(examples, look)
        self._refuse_nan(found)
        return found

    def _refuse_nan(self, logps: Sequence[Tensor]) -> None:
        """Argmax and a count of words make figures even of such a model, as if it had answered badly."""
        if any(of_row.isnan().any() for of_row in logps):
            raise UserError(f"{self.name}: its log-probs are not numbers (NaN): are its weights whole?")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Without dropout and gradients; the model's train flag is put back."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def of_rows(self, examples: Sequence[Example], look: Callable[[Batch], Sequence[Tensor]]) -> list[Tensor]:
        """What `look` says of each row of a batch (padded, on the model's device): of every example, in their order, on
        the CPU. Rows of like length go together."""
        process, count = self.share
        own = sorted(range(len(examples)), key=lambda i: len(examples[i]))[process::count]
        device, found = next(self.model.parameters()).device, {}
        with self.reading():
            for start in range(0, len(own), self.batch_size):
                chosen = own[start : start + self.batch_size]
                batch = collate([examples[i] for i in chosen], self.tokenizer.pad_token_id).to(device)
                found |= {i: of_row.cpu() for i, of_row in zip(chosen, look(batch), strict=True)}
        found = found if count == 1 else processes.merge(found)
        return [found[i] for i in range(len(examples))]

    @functools.cached_property
    def _completion_logps(self) -> models.CompletionLogps:
        return models.CompletionLogps(self.model)


def _gathered(said: Rollout, ids: list[list[int]], own: Sequence[int], samples: int) -> Rollout:
    """The shares of all processes in the order of the prompts. said: the answers to this process's own."""
    answers = list(zip(said.completion_ids, said.logps, said.finished, strict=True))
    of_prompt = processes.merge({p: answers[i * samples : (i + 1) * samples] for i, p in enumerate(own)})
    every = [answer for prompt in range(len(ids)) for answer in of_prompt[prompt]]
    prompts = [prompt for prompt in ids for _ in range(samples)]
    return Rollout(prompts, [a[0] for a in every], [a[1] for a in every], [a[2] for a in every])
