"""What answers are worth, for GRPO and PPO: verifiable reward functions or a learned reward model; functions that are
only watched; and what any of them has logged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.models import scalar
from posttrain.models.sharded import gathered
from posttrain.rollouts import rewards
from posttrain.rollouts.asking import ask
from posttrain.rollouts.calling import call_all, listen, named
from posttrain.rollouts.logged import OF_A_RUN, Logged, TrainerState
from posttrain.rollouts.sampling import Rollout

Metrics = dict[str, tuple[float, int]]  # name -> (sum, count)


class Scored(NamedTuple):
    """The answers of this process to some prompts, and what was said of them."""

    texts: list[str]
    rows: list[dict]  # of each answer
    values: list[float]  # the reward of each
    metrics: Metrics
    logged: Logged
    group_size: int  # answers to a prompt


class Scorer:
    """config.grpo or config.ppo (`method` names it in messages), or what Python passed as `given`, -> a reward per
    answer."""

    def __init__(self, section: Any, method: str, given: Callable | list[Callable] | None, data: Any, run: Any):
        self.weights, self.batch_size, self.name = section.reward_weights, run.training.micro_batch_size, None
        self.run = run
        self.reward_model, self.functions = None, []
        names = section.reward if given is None else given
        if given is not None and not section.learns_from_rewards:
            raise UserError(f"{method}.advantage: teacher learns from no reward function: name it in {method}.watch")
        if names is not None:
            self.functions = rewards.find(names, self.weights, key=f"{method}.reward")
        elif section.reward_model is not None:
            self.name, key = section.reward_model, f"{method}.reward_model"
            reward_model, self.tokenizer = scalar.load_reward_model(self.name, device=run.parallel.loads_on, key=key)
            self.reward_model = run.parallel.spread(reward_model)
        self.watched = [] if section.watch is None else rewards.find(section.watch, key=f"{method}.watch")
        self.seen = [f"watched/{name}" for name in named(self.watched)]  # their names among the metrics
        rewards.refuse_bad_targets([*self.functions, *self.watched], data)

    @property
    def scores(self) -> bool:
        """Is anything learned from rewards? Else every answer's is 0, and none is told."""
        return bool(self.functions) or self.reward_model is not None

    @property
    def fingerprinted(self) -> Any:
        """What has to be the same when a run is resumed."""
        return self.functions or self.reward_model

    def refuse_another_vocabulary(self, tokenizer: Any) -> None:
        if self.reward_model is not None:
            scalar.refuse_another_vocabulary(tokenizer, self.tokenizer, self.name)

    def __call__(self, rollout: Rollout, tokenizer: Any, prompts: list) -> tuple[list[float], Metrics]:
        """(one reward per answer, metrics): each function's own, the watched ones', parse failures, what was logged."""
        scored = self._score(rollout, tokenizer, prompts)
        return scored.values, scored.metrics | self._tell(scored)

    def _score(self, rollout: Rollout, tokenizer: Any, prompts: list, *, uncounted: int = 0) -> Scored:
        """uncounted: optimiser steps that are done and that run.step does not know of yet."""
        texts, logged, metrics = rollout.texts(tokenizer), Logged(), {}
        rows = rewards.of_each([prompt.row for prompt in prompts], len(texts))
        functions = [*self.functions, *self.watched]
        available: dict[str, Any] = rewards.offer(rows, texts, rollout)
        if listen(functions, *OF_A_RUN):
            state = self._state(self.run.step + uncounted)
            available |= dict(zip(OF_A_RUN, (state, logged.log_metric, logged.log_extra), strict=True))
        given, completions = call_all(functions, available), available["completions"]
        logged.refuse_uneven(len(texts))
        if not self.scores:
            values = [0.0] * len(texts)
        elif self.reward_model is None:
            own = given[: len(self.functions)]
            values, metrics = rewards.add_up(self.functions, self.weights, own, completions)
        else:
            examples, pad_id = rollout.examples(), self.tokenizer.pad_token_id
            with gathered(self.reward_model):  # the processes have different numbers of answers
                values = scalar.score_examples(self.reward_model, examples, pad_id, self.batch_size)
        for function, name, numbers in zip(self.watched, self.seen, given[len(self.functions) :], strict=True):
            alone, _ = rewards.add_up([function], None, [numbers], completions)
            metrics[name] = (sum(alone), len(alone))
        if rewards.answer in functions:
            unread = sum(rewards.extract_answer(text) is None for text in texts)
            metrics["parse_failures"] = (unread, len(texts))
        return Scored(texts, rows, values, metrics, logged, len(texts) // len(prompts))

    def _state(self, step: int) -> TrainerState:
        run, size = self.run, self.run.steps_per_epoch
        epoch, epochs = (None, None) if size is None else (step / size, math.ceil(run.num_steps / size))
        return TrainerState(step, run.num_steps, epoch, epochs, run.accelerator.is_main_process)

    def _tell(self, scored: Scored, *, held_out: bool = False) -> Metrics:
        """What was logged, as metrics of all processes (whatever one of them alone has logged), and as lines of
        rollouts.jsonl. Every process comes here, or none: the functions' signatures decide."""
        if not listen([*self.functions, *self.watched], "log_metric", "log_extra"):
            return {}
        own = scored.logged.sums()
        told = self.run.gather((list(own), list(scored.logged.columns)))
        names, columns = (sorted({name for of_one in told for name in of_one[i]}) for i in (0, 1))
        if columns:
            self.run.write_answers(self._lines(scored, columns, held_out))
        return {f"logged/{name}": own.get(name, (0.0, 0)) for name in names}

    def _lines(self, scored: Scored, columns: list[str], held_out: bool) -> dict[int, dict]:
        """{number of the answer among those of all processes: its line}."""
        lines, size, accelerator = {}, scored.group_size, self.run.accelerator
        for i, (text, row, value) in enumerate(zip(scored.texts, scored.rows, scored.values, strict=True)):
            prompt = accelerator.process_index + i // size * accelerator.num_processes  # they are dealt out in turn
            line = {"step": self.run.step + 1, "held_out": held_out, "prompt": row["asked"], "completion": text}
            logged = {f"logged/{c}": v[i] if (v := scored.logged.columns.get(c)) else None for c in columns}
            lines[prompt * size + i % size] = line | {"reward": value} | logged
        return lines

    def held_out(self, model: Any, validation: list, section: Any, tokenizer: Any, run: Any) -> dict[str, float]:
        """Mean reward (and watched rewards) of one greedy answer to each held-out prompt, over all processes."""
        own = validation[run.accelerator.process_index :: run.accelerator.num_processes]
        names: dict[str, str | None] = {"reward_held_out": None} if self.scores else {}
        names |= {f"{name}_held_out": name for name in self.seen}
        sums, scored = dict.fromkeys(names, 0.0), Scored([], [], [], {}, Logged(), 1)
        with gathered(self.reward_model):  # by all of them: more processes than prompts, and some have nothing to ask
            if own:
                with run.parallel.autocast():
                    rollout = ask(model, tokenizer, [p.ids for p in own], max_new_tokens=section.max_new_tokens)
                scored = self._score(rollout, tokenizer, own, uncounted=1)
                sums = {n: sum(scored.values) if key is None else scored.metrics[key][0] for n, key in names.items()}
        means = {name: run.sum_over_processes(value) / len(validation) for name, value in sums.items()}
        for name, (total, count) in self._tell(scored, held_out=True).items():
            means[f"{name}_held_out"] = run.sum_over_processes(total) / run.sum_over_processes(count)
        return means


def describe(values: Tensor | None, rollout: Rollout) -> dict[str, tuple]:
    """What to watch of a rollout and the rewards [N] of its answers (None: nothing is rewarded), as (sum, count)."""
    n = len(rollout.completion_ids)
    rewards = {} if values is None else {"reward": (values.sum(), n)}
    return rewards | {
        "completion_length": (sum(map(len, rollout.completion_ids)), n),
        "finished": (sum(rollout.finished), n),
    }


def refuse_graded(rewards: list[float], key: str, *, signed: bool = False) -> None:
    """`key` needs answers that are right (1) or wrong (0; signed: or -1)."""
    said = set(rewards)
    if not (said <= {0.0, 1.0} or (signed and said <= {-1.0, 1.0})):
        kinds = "0 or 1" + ", or -1 or 1," * signed
        raise UserError(
            f"{key} needs a verifiable reward, {kinds} for every answer; this one gave {', '.join(f'{x:g}' for x in sorted(said)[:4])}"
        )


def end_once(scores: list[float], finished: list[bool], ppo: Any) -> tuple[Tensor, list[bool]]:
    """(score of each answer, whether the value of its last state follows). Finished: its score, and nothing follows.

    Cut off: either it is scored, or given the fixed penalty, and nothing follows; or it has no score, and the critic
    says what would have come. Never both, or its ending would be paid twice."""
    pairs = list(zip(scores, finished, strict=True))
    if ppo.truncated == "bootstrap":
        return torch.tensor([s if done else 0.0 for s, done in pairs]), [not done for done in finished]
    penalty = ppo.truncation_penalty
    return torch.tensor([s if done or penalty is None else penalty for s, done in pairs]), [False] * len(scores)
