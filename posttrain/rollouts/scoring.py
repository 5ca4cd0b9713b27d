"""Where PPO's scores come from: verifiable reward functions, or a learned reward model; and functions that are only watched."""

from __future__ import annotations

from posttrain.models import scalar
from posttrain.rollouts import rewards
from posttrain.rollouts.sampling import Rollout


class Judge:
    """Where scores come from: reward functions or a reward model; and functions that are only watched."""

    def __init__(self, ppo, given, data, device, batch_size: int):
        self.weights, self.scorer = ppo.reward_weights, None
        names = ppo.reward if given is None else given
        if names is None:
            self.functions = []
            self.scorer, self.tokenizer = scalar.load_reward_model(
                ppo.reward_model, device=device, key="ppo.reward_model"
            )
        else:
            self.functions = rewards.find(names, self.weights)
        self.watched = [] if ppo.watch is None else rewards.find(ppo.watch)
        self.name, self.batch_size = ppo.reward_model, batch_size
        rewards.refuse_bad_targets([*self.functions, *self.watched], data)

    def refuse_another_vocabulary(self, tokenizer) -> None:
        if self.scorer is not None:
            scalar.refuse_another_vocabulary(tokenizer, self.tokenizer, self.name)

    def __call__(self, rollout: Rollout, tokenizer, asked: list) -> tuple[list[float], dict]:
        """(one score per answer, metrics)"""
        texts, rows = rollout.texts(tokenizer), [prompt.row for prompt in asked]
        metrics: dict[str, tuple] = {}
        for function in self.watched:
            values, _ = rewards.of_rollout([function], None, rollout, texts, rows)
            metrics[f"watched/{function.__name__}"] = (sum(values), len(values))
        if self.scorer is None:
            scores, parts = rewards.of_rollout(self.functions, self.weights, rollout, texts, rows)
            return scores, metrics | parts
        pad_id = self.tokenizer.pad_token_id
        return scalar.score_examples(self.scorer, rollout.examples(), pad_id, self.batch_size), metrics
