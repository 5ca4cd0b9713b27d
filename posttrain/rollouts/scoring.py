"""What answers are worth, for GRPO and PPO: verifiable reward functions or a learned reward model; and functions that
are only watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posttrain.models import scalar
from posttrain.rollouts import rewards
from posttrain.rollouts.asking import ask
from posttrain.rollouts.sampling import Rollout

Metrics = dict[str, tuple[float, int]]  # name -> (sum, count)


class Scorer:
    """config.grpo or config.ppo (`method` names it in messages), or what Python passed as `given`, -> a reward per
    answer."""

    def __init__(self, section: Any, method: str, given: Callable | list[Callable] | None, data: Any, run: Any):
        self.weights, self.batch_size, self.name = section.reward_weights, run.training.micro_batch_size, None
        self.reward_model, self.functions = None, []
        names = section.reward if given is None else given
        if names is None:
            self.name, key = section.reward_model, f"{method}.reward_model"
            self.reward_model, self.tokenizer = scalar.load_reward_model(self.name, device=run.device, key=key)
        else:
            self.functions = rewards.find(names, self.weights, key=f"{method}.reward")
        self.watched = [] if section.watch is None else rewards.find(section.watch, key=f"{method}.watch")
        rewards.refuse_bad_targets([*self.functions, *self.watched], data)

    @property
    def fingerprinted(self) -> Any:
        """What has to be the same when a run is resumed."""
        return self.functions or self.reward_model

    def refuse_another_vocabulary(self, tokenizer: Any) -> None:
        if self.reward_model is not None:
            scalar.refuse_another_vocabulary(tokenizer, self.tokenizer, self.name)

    def __call__(self, rollout: Rollout, tokenizer: Any, prompts: list) -> tuple[list[float], Metrics]:
        """(one reward per answer, metrics): each function's own, the watched ones', parse failures."""
        texts, rows = rollout.texts(tokenizer), [prompt.row for prompt in prompts]
        metrics: Metrics = {}
        if self.reward_model is None:
            values, metrics = rewards.of_rollout(self.functions, self.weights, rollout, texts, rows)
        else:
            examples, pad_id = rollout.examples(), self.tokenizer.pad_token_id
            values = scalar.score_examples(self.reward_model, examples, pad_id, self.batch_size)
        for function in self.watched:
            of_each, _ = rewards.of_rollout([function], None, rollout, texts, rows)
            metrics[f"watched/{function.__name__}"] = (sum(of_each), len(of_each))
        if rewards.answer in [*self.functions, *self.watched]:
            unread = sum(rewards.extract_answer(text) is None for text in texts)
            metrics["parse_failures"] = (unread, len(texts))
        return values, metrics

    def held_out(self, model: Any, validation: list, section: Any, tokenizer: Any, run: Any) -> dict[str, float]:
        """Mean reward (and watched rewards) of one greedy answer to each held-out prompt, over all processes."""
        own = validation[run.accelerator.process_index :: run.accelerator.num_processes]
        names = {"reward_held_out": None} | {
            f"watched/{f.__name__}_held_out": f"watched/{f.__name__}" for f in self.watched
        }
        sums = dict.fromkeys(names, 0.0)
        if own:  # more processes than prompts: some have nothing to ask, and add 0
            with run.accelerator.autocast():
                rollout = ask(model, tokenizer, [p.ids for p in own], max_new_tokens=section.max_new_tokens)
            values, metrics = self(rollout, tokenizer, own)
            sums = {name: sum(values) if key is None else metrics[key][0] for name, key in names.items()}
        return {name: run.sum_over_processes(value) / len(validation) for name, value in sums.items()}


def describe(values: Tensor, rollout: Rollout) -> dict[str, tuple]:
    """What to watch of a rollout and the rewards [N] of its answers, as (sum, count)."""
    n = len(values)
    return {
        "reward": (values.sum(), n),
        "completion_length": (sum(map(len, rollout.completion_ids)), n),
        "finished": (sum(rollout.finished), n),
    }


def end_once(scores: list[float], finished: list[bool], ppo: Any) -> tuple[Tensor, list[bool]]:
    """(score of each answer, whether the value of its last state follows). Finished: its score, and nothing follows.

    Cut off: either it is scored, or given the fixed penalty, and nothing follows; or it has no score, and the critic
    says what would have come. Never both, or its ending would be paid twice."""
    pairs = list(zip(scores, finished, strict=True))
    if ppo.truncated == "bootstrap":
        return torch.tensor([s if done else 0.0 for s, done in pairs]), [not done for done in finished]
    penalty = ppo.truncation_penalty
    return torch.tensor([s if done or penalty is None else penalty for s, done in pairs]), [False] * len(scores)
