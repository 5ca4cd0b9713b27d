"""A Subject that says what it is told to, for the suites' tests, whose figures are then counted by hand; and results of
none, for those of files and tables."""

import torch
from kit import bytelevel_tokenizer

from posttrain.evaluation.results import Measured, Results
from posttrain.evaluation.scores import Outcome, mean, proportion
from posttrain.evaluation.subjects import Subject
from posttrain.rollouts.sampling import Rollout


class Told(Subject):
    """says(prompt as text, number of the sample) -> (answer, did it end); reads(row's text) -> log-probs of its tokens."""

    def __init__(self, says=None, reads=None, name="told"):
        super().__init__(name, torch.nn.Linear(1, 1), bytelevel_tokenizer())
        self.says, self.reads, self.asked = says, reads, []

    limit = None

    def rollout(self, ids, *, max_new_tokens, samples=1, temperature=0.0):
        self.asked.append((len(ids), samples, temperature))
        given = [self.says(self.tokenizer.decode(i), k) for i in ids for k in range(samples)]
        said = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in given]
        prompts = [i for i in ids for _ in range(samples)]
        return Rollout(prompts, said, [torch.full((len(s),), -0.5) for s in said], [ended for _, ended in given])

    def logps(self, examples):
        return [self.reads(self.tokenizer.decode(example.input_ids)) for example in examples]


def scores(outcome):
    return {score.name: score for score in outcome.scores}


ABOUT = {"posttrain": "0", "torch": "0", "transformers": "0", "settings": {"seed": 0}}


def results(hits, name="m", prompts=None, options=None, more=()):
    prompts = prompts or [f"q{i}" for i in range(len(hits))]
    records = [{"part": "problems", "prompt": p, "answers": [{"text": f"a{h}"}]} for p, h in zip(prompts, hits, strict=True)]  # fmt: skip
    scores = [proportion("right", "right ones", hits, "problems"), mean("one", "", [1.5], "problems")]
    model = Measured(name, {"fingerprint": "f"}, {"accuracy": Outcome(scores, records, ["read me"])})
    return Results(ABOUT, {"accuracy": options or {"data": "d"}}, [model, *more])
