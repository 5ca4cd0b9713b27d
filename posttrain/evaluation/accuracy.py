"""Suite accuracy: is the answer to a problem with a known answer right? Greedy, and of several samples.

right     share of greedy answers that the reward function calls right (for `answer`: the parsed number is the one)
unread    of `answer`: greedy answers from which no single number could be read (they count as wrong)
ended     greedy answers that ended their turn in time (`answer` calls one that did not wrong)
sampled   share of right answers among `samples` at a temperature; an item is a problem, not a sample
pass@k    at least one of k samples is right (Chen et al. 2021, eq. 1), mean over the problems
"""

from __future__ import annotations

from typing import Any

from posttrain.config.suites import Accuracy as Options
from posttrain.data import procedural
from posttrain.evaluation.intervals import pass_at_k
from posttrain.evaluation.scores import Outcome, Score, mean, proportion
from posttrain.evaluation.subjects import Answer, Subject
from posttrain.evaluation.suite_rows import prompts_of
from posttrain.rollouts import calling, rewards
from posttrain.rollouts.sampling import Rollout
from posttrain.tokens.examples import shown


class Accuracy:
    def __init__(self, options: Options):
        self.options = options
        own = "reasoning_gym" if procedural.is_task(options.data) else "answer"
        self.functions = rewards.find(options.reward or own, key="--accuracy.reward")
        self.rows = prompts_of(options, options.data)
        rewards.refuse_bad_targets(self.functions, self.rows)
        calling.refuse_missing(self.functions, rewards.offered(self.rows))

    def __call__(self, subject: Subject) -> Outcome:
        o, rows = self.options, self.rows.rows
        ids = [subject.prompt_ids(row["prompt"], **shown(row)) for row in rows]
        rollout = subject.rollout(ids, max_new_tokens=o.max_new_tokens)
        answers, given = subject.answers(rollout, 1), self._rewards(subject, rollout)
        right = [value > o.right_above for value in given]
        texts = [answer.text for (answer,) in answers]
        scores = [proportion("right", "greedy answers that are right", right, "problems")]
        read = rewards.answer in self.functions
        if read:
            unread = [rewards.extract_answer(text) is None for text in texts]
            about = "greedy answers from which no single number can be read, counted as wrong"
            scores.append(proportion("unread", about, unread, "problems", better="lower"))
        else:
            scores.append(mean("reward", "what the reward function gives the greedy answer", given, "problems"))
        ended = [answer.finished for (answer,) in answers]
        about = f"greedy answers that ended within {o.max_new_tokens} tokens"
        scores.append(proportion("ended", about, ended, "problems"))

        sampled: list[list[Answer]] = [[] for _ in rows]
        sampled_right: list[list[bool]] = [[] for _ in rows]
        if o.samples:
            k = o.samples
            drawn = subject.rollout(ids, max_new_tokens=o.max_new_tokens, samples=k, temperature=o.temperature)
            flat = [value > o.right_above for value in self._rewards(subject, drawn)]
            sampled, sampled_right = subject.answers(drawn, k), [flat[i : i + k] for i in range(0, len(flat), k)]
            scores += of_samples(sampled_right, o.pass_at or k, o.temperature)
        records = [
            {
                "part": "problems", "prompt": row["asked"], "wanted": _plain(row["columns"]), "right": right[i],
                **({"read": _number(texts[i])} if read else {"reward": given[i]}),
                "answers": [answers[i][0].as_json()], "sampled_right": sum(sampled_right[i]),
                "sampled": [a.as_json() | {"right": ok} for a, ok in zip(sampled[i], sampled_right[i], strict=True)],
            }
            for i, row in enumerate(rows)
        ]  # fmt: skip
        return Outcome(scores, records, [f"left out {len(self.rows.bad)} rows: {self.rows.bad[0]}"] if self.rows.bad else [])  # fmt: skip

    def _rewards(self, subject: Subject, rollout: Rollout) -> list[float]:
        texts = rollout.texts(subject.tokenizer)
        return rewards.of_rollout(self.functions, None, rollout, texts, self.rows.rows)[0]


def of_samples(right: list[list[bool]], k: int, temperature: float) -> tuple[Score, Score]:
    """sampled and pass@k. right: of each problem, whether each of its n samples is right."""
    n = len(right[0])
    how = f"of {n} samples at temperature {temperature:g}"
    shares = [sum(of_one) / n for of_one in right]
    at_k = [pass_at_k(n, sum(of_one), k) for of_one in right]
    return (
        mean("sampled", f"right answers {how}, the interval over problems", shares, "problems"),
        mean(f"pass@{k}", f"at least one of {k} is right, {how}", at_k, "problems"),
    )


def _number(text: str) -> str | None:
    found = rewards.extract_answer(text)
    return None if found is None else str(found)


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """For JSON."""
    return {k: v if isinstance(v, (str, int, float, bool, list, dict)) or v is None else str(v) for k, v in columns.items()}  # fmt: skip
