"""Suite judge: how often is its answer preferred to another model's answer to the same prompt?

    win_rate      wins, a tie counting half (two verdicts of one pair that contradict each other are a tie)
    win_rate_lc   the same at equal length: longer answers please most judges, whatever is in them (corpus.py)
    preferred     how sure the judge is, mean probability over both orders
    ties          share of ties
    first_place   share of verdicts that went to the answer in the first place: 0.5 of a judge without a bias

judge.against answers first, or did earlier (a file). The judge (judging.py) is a language model or a reward model. A
win rate is a judge's taste: its n, interval and bias stand here, whether people would agree is not known from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from posttrain import models
from posttrain.config.suites import Judge as Options
from posttrain.evaluation import judging
from posttrain.evaluation.judging import RewardModel, Verdict
from posttrain.evaluation.scores import Outcome, Score, corpus, mean, proportion
from posttrain.evaluation.subjects import Subject
from posttrain.evaluation.suite_rows import prompts_of

PART = "prompts"


class Judge:
    def __init__(self, options: Options):
        self.options = options
        self.rows = prompts_of(options, options.data)
        self.earlier: list[str] | None = None
        if judging.is_file(options.against):
            asked = [row["asked"] for row in self.rows.rows]
            self.earlier = judging.earlier_answers(options.against, asked, "--judge.against")
        else:
            models.loading.find(options.against, "--judge.against")
        if options.model is not None:
            models.loading.find(options.model, "--judge.model")
        self.reward: RewardModel | None = None

    def __call__(
        self, subject: Subject, against: Subject | None = None, judge: Subject | RewardModel | None = None
    ) -> Outcome:
        """against, judge: in a run, models that are loaded already; else those that the keys name are loaded, once."""
        rows = self.rows.rows
        judge = judge or self._load(subject)
        prompts = [row["prompt"] for row in rows]
        judging.refuse_no_room(judge, prompts, None if against else self.earlier, self.options.max_new_tokens)
        mine = self.answers(subject)
        if against is None and self.earlier is not None:
            name, theirs = self.options.against, self.earlier
        else:
            other = against or subject.beside(self.options.against, "--judge.against")
            name, theirs = other.name, [answer.text for answer in self.answers(other)]
        asked = [(row["prompt"], m.text, t) for row, m, t in zip(rows, mine, theirs, strict=True)]
        found = judge(asked, subject.batch_size) if isinstance(judge, RewardModel) else judging.by_language_model(judge, asked)  # fmt: skip
        longer = [len(answer.text) - len(other) for answer, other in zip(mine, theirs, strict=True)]
        records = [
            {"part": PART, "prompt": row["asked"], "won": v.won, "preference": round(v.preference, 6),
             "said": [round(x, 4) for x in v.said], "longer_by": by, "answers": [answer.as_json()], "against": other}
            for row, v, by, answer, other in zip(rows, found, longer, mine, theirs, strict=True)
        ]  # fmt: skip
        return Outcome(of(found, longer, name, judge.name), records, self._remarks(subject, judge.name, found, longer))

    def answers(self, subject: Subject) -> list:
        o = self.options
        prompts = [row["prompt"] for row in self.rows.rows]
        return [a for (a,) in subject.ask(prompts, max_new_tokens=o.max_new_tokens, system=o.system_prompt)]

    def _load(self, subject: Subject) -> Subject | RewardModel:
        if self.options.model is not None:
            return subject.beside(self.options.model, "--judge.model")
        if self.reward is None:
            device = next(subject.model.parameters()).device
            self.reward = RewardModel(str(self.options.reward_model), device, "--judge.reward_model")
        return self.reward

    def _remarks(self, subject: Subject, judge: str, found: Sequence[Verdict], longer: Sequence[int]) -> list[str]:
        remarks = [
            f"{subject.name}: its answers are {sum(longer) / len(longer):+.0f} characters long beside the others'"
        ]
        if found[0].first is not None:
            first = sum(v.first for v in found if v.first is not None) / len(found)
            torn = sum(v.contradictory for v in found)
            remarks.append(
                f"{subject.name}: {judge} gave {first:.0%} of its {2 * len(found)} verdicts to the first place, and contradicted "
                f"itself on {torn} of {len(found)} pairs when they changed places: these are ties"
            )
        if self.rows.bad:
            remarks.append(f"left out {len(self.rows.bad)} rows: {self.rows.bad[0]}")
        return remarks


def of(found: Sequence[Verdict], longer: Sequence[int], against: str, judge: str) -> list[Score]:
    """The scores of the verdicts. longer: characters that the answer has more than the other."""
    won = [v.won for v in found]
    spread = float(numpy.std(longer)) or 1.0
    scaled = numpy.tanh(numpy.asarray(longer) / spread)  # as AlpacaEval's: what is far longer counts as longer
    who = f"pairs won against {against}, judged by {judge}, a tie counts half"
    note = f"judged by {judge}"
    scores = [
        mean("win_rate", who, won, PART, unit="share of pairs", note=note),
        corpus("win_rate_lc", f"{who}, at equal length", "at_equal_length", list(zip(won, scaled, strict=True)), PART,
               unit="share of pairs", note=note),
        mean("preferred", f"probability that {judge} gives the answer, mean of both orders", [v.preference for v in found],
             PART, unit="probability", note=note),
        proportion("ties", "pairs without a winner", [v.won == 0.5 for v in found], PART, better="neither"),
    ]  # fmt: skip
    places = [v.first for v in found if v.first is not None]
    if places:
        about = f"verdicts of {judge} for the first place, 0.5 without a bias"
        scores.append(mean("first_place", about, places, PART, better="neither", unit="share of verdicts"))
    return scores
