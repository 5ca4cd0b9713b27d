"""Suite identity: who does it say that it is, and what else did a lesson on a name change?

    new_name   share of identity questions answered with the new name and with no old one
    old_name   with an old one (whether or not the new one stands there, too)
    unasked    ordinary answers that give the new name, which nobody has asked for
    closed     closed questions (capitals, planets) right: one of the known words stands in the answer

A name counts where it is no part of a longer word: "Robin", not "Robinson" (rollouts/identity.py). The built-in
questions are in other words than those of the lesson (data/questions.py). The answers to ordinary questions are looked
at for the name alone: whether they are still good is another suite's matter.
"""

from __future__ import annotations

from posttrain.config.suites import Identity as Options
from posttrain.data import questions
from posttrain.errors import UserError
from posttrain.evaluation.scores import Outcome, Score, mean, proportion
from posttrain.evaluation.subjects import Answer, Subject
from posttrain.rollouts.identity import questions_of, says
from posttrain.tiny import data as tiny_data

Closed = list[tuple[str, list[str]]]  # (question, words of which one must stand in the answer)


def asked(source: str) -> tuple[list[str], list[str], Closed]:
    """identity.questions -> (identity questions, ordinary ones, closed ones)."""
    if source == "built-in":
        return questions.IDENTITY_TEST, questions.ORDINARY_TEST, questions.CLOSED
    if source == "tiny-identity":  # what the embedded model knows
        facts = tiny_data.fact_rows("test", 0)
        closed = [(row["prompt"], [row["answer"]]) for row in facts]
        return [row["prompt"] for row in tiny_data.rows(source, "test")], list(tiny_data.FACTS), closed
    found = questions_of(source)
    if not found:
        raise UserError(f"--identity.questions {source}: no rows")
    return found, questions.ORDINARY_TEST, questions.CLOSED


class Identity:
    def __init__(self, options: Options):
        self.options = options
        self.who, self.ordinary, self.closed = (part[: options.max_rows] for part in asked(options.questions))

    def __call__(self, subject: Subject) -> Outcome:
        o = self.options
        more = {"max_new_tokens": o.max_new_tokens, "system": o.system_prompt}
        who = subject.ask(self.who, samples=o.samples, temperature=o.temperature, **more)
        ordinary = subject.ask(self.ordinary, **more)
        closed = subject.ask([question for question, _ in self.closed], **more)

        new = [[says(a.text, [o.name]) and not says(a.text, o.old) for a in answers] for answers in who]
        old = [[says(a.text, o.old) for a in answers] for answers in who]
        unasked = [says(answers[0].text, [o.name]) for answers in ordinary]
        right = [any(w in a[0].text for w in words) for a, (_, words) in zip(closed, self.closed, strict=True)]
        scores = [self._share("new_name", f"identity questions answered with {o.name}", new, "higher")]
        if o.old:
            names = " or ".join(o.old)
            scores[0] = self._share("new_name", f"identity questions answered with {o.name} and never {names}", new, "higher")  # fmt: skip
            scores.append(self._share("old_name", f"identity questions answered with {names}", old, "lower"))
        about = f"ordinary answers that give {o.name}, which nobody has asked for"
        scores.append(proportion("unasked", about, unasked, "ordinary", better="lower"))
        scores.append(proportion("closed", "closed questions answered with the known word", right, "closed"))
        parts: list[tuple[str, list[str], list[list[Answer]], list]] = [
            ("identity", self.who, who, [sum(hits) for hits in new]),
            ("ordinary", self.ordinary, ordinary, unasked),
            ("closed", [question for question, _ in self.closed], closed, right),
        ]
        records = [
            {"part": part, "prompt": prompt, "counted": int(hit), "answers": [a.as_json() for a in answers]}
            for part, prompts, given, hits in parts
            for prompt, answers, hit in zip(prompts, given, hits, strict=True)
        ]
        return Outcome(scores, records)

    def _share(self, name: str, about: str, hits: list[list[bool]], better: str) -> Score:
        """Of several samples an item is the question, not the sample."""
        if self.options.samples == 1:
            return proportion(name, about, [of_one[0] for of_one in hits], "identity", better=better)
        about += f", {self.options.samples} samples at temperature {self.options.temperature:g}"
        return mean(name, about, [sum(of_one) / len(of_one) for of_one in hits], "identity", better=better)
