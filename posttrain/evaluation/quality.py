"""Suite quality: how near are the answers to the references, how long are they, do they end, do they repeat themselves?

    bleu, chrf       of the whole corpus, as sacrebleu makes them (its signature stands in results.json), 0 to 100
    rouge_l          F of the longest common subsequence of words (rouge-score, without stemming), mean over the rows
    bertscore        F of matched hidden states (bertscore.py), only with quality.bertscore_model
    ended            share of answers that ended their turn in time
    tokens, words    length of the answers; the references' words stand beside it
    distinct_1, _2   different words (pairs of words) within an answer, of all in it: low where an answer repeats itself

Greedy answers to all but the last reply of each row, which is the reference. What these count are words and pieces of
words in common: a right answer in other words scores low, and a wrong one in the reference's words scores high.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.suites import Quality as Options
from posttrain.errors import UserError
from posttrain.evaluation.bertscore import Encoder
from posttrain.evaluation.scores import Outcome, Score, corpus, mean, proportion
from posttrain.evaluation.subjects import Answer, Subject
from posttrain.evaluation.suite_rows import texts_of
from posttrain.tokens.examples import shown

PART = "rows"


class Quality:
    def __init__(self, options: Options):
        self.options = options
        self.sacrebleu, self.rouge = _packages()
        self.rows = texts_of(options)
        for index, row in enumerate(self.rows.rows):
            if "text" in row:
                where = self.rows.where(index)
                raise UserError(f"{where}: plain text has no reference: expected prompt + completion, or messages")
        self.prompts = [row["messages"][:-1] for row in self.rows.rows]
        self.references = [str(row["messages"][-1]["content"]).strip() for row in self.rows.rows]
        self.encoder = (
            None
            if options.bertscore_model is None
            else Encoder(options.bertscore_model, options.bertscore_layer, "--quality.bertscore_model")
        )

    def __call__(self, subject: Subject) -> Outcome:
        ids = [subject.prompt_ids(p, **shown(row)) for p, row in zip(self.prompts, self.rows.rows, strict=True)]
        rollout = subject.rollout(ids, max_new_tokens=self.options.max_new_tokens)
        answers = [answer for (answer,) in subject.answers(rollout, 1)]
        texts = [answer.text for answer in answers]
        scores, found = self.overlap(texts)
        if self.encoder is not None:
            device = next(subject.model.parameters()).device
            found["bertscore"] = self.encoder.f1(texts, self.references, device=device, batch_size=subject.batch_size)
            scores.append(
                mean("bertscore", f"BERTScore F1, {self.encoder.about}", found["bertscore"], PART, unit="0 to 1")
            )
        scores += self.form(answers)
        records = [
            {"part": PART, "prompt": prompt, "wanted": reference, "answers": [answer.as_json()],
             **{name: round(values[i], 6) for name, values in found.items()}}
            for i, (prompt, reference, answer) in enumerate(zip(self.prompts, self.references, answers, strict=True))
        ]  # fmt: skip
        together = [len({g for t in texts for g in grams(t, n)}) / max(1, sum(len(grams(t, n)) for t in texts)) for n in (1, 2)]  # fmt: skip
        remarks = [
            f"{subject.name}: distinct-1 and -2 of all answers together (Li et al. 2016) {together[0]:.3f} and {together[1]:.3f}: "
            "they fall with the number of answers, so they have no interval and are compared at the same number only"
        ]
        if self.rows.bad:
            remarks.append(f"left out {len(self.rows.bad)} rows: {self.rows.bad[0]}")
        return Outcome(scores, records, remarks)

    def overlap(self, texts: Sequence[str]) -> tuple[list[Score], dict[str, list[float]]]:
        """BLEU, chrF and ROUGE-L of the answers; what of them stands beside each row."""
        scores = []
        for name, about, metric in (
            ("bleu", "corpus BLEU (sacrebleu)", self.sacrebleu.BLEU(force=True)),
            ("chrf", "corpus chrF (sacrebleu)", self.sacrebleu.CHRF()),
        ):
            statistics = metric._extract_corpus_statistics(list(texts), [self.references])  # of each row; tested
            signature = str(metric.get_signature())
            scores.append(corpus(name, about, name, statistics, PART, unit="of 100", signature=signature))
        rouge = [self.rouge.score(r, text)["rougeL"].fmeasure for r, text in zip(self.references, texts, strict=True)]
        scores.append(
            mean("rouge_l", "ROUGE-L F1 of letters a to z and digits, no stemming", rouge, PART, unit="0 to 1")
        )
        return scores, {"rouge_l": rouge}

    def form(self, answers: Sequence[Answer]) -> list[Score]:
        ended = [answer.finished for answer in answers]
        words = [len(answer.text.split()) for answer in answers]
        wanted = sum(len(reference.split()) for reference in self.references) / len(self.references)
        scores = [
            proportion("ended", f"answers that ended within {self.options.max_new_tokens} tokens", ended, PART),
            mean("tokens", "tokens of an answer, the end token included", [a.tokens for a in answers], PART,
                 share=False, better="neither", unit="tokens"),
            mean("words", f"words of an answer; the references have {wanted:.1f}", words, PART, share=False,
                 better="neither", unit="words"),
        ]  # fmt: skip
        for n, what in ((1, "words"), (2, "pairs of words")):
            parts = [(len(set(grams(a.text, n))), len(grams(a.text, n))) for a in answers]
            about = f"different {what} within an answer, of all {what} in it"
            scores.append(corpus(f"distinct_{n}", about, "share", parts, PART, unit=f"share of {what}"))
        return scores


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    """
    >>> grams("So so it", 2)
    [('so', 'so'), ('so', 'it')]
    """
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _packages():
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import metrics
    except ImportError as missing:
        raise UserError(f"--suite quality needs an extra ({missing}): pip install -r requirements-eval.txt") from None
    return metrics, RougeScorer(["rougeL"])
