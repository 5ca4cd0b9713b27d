"""A rung of the ladder counts what was said: on a model that says what it is told to."""

import math
import random

import pytest
import torch
from kit import bytelevel_tokenizer, tiny_model

from posttrain.evaluation import rungs
from posttrain.rollouts.sampling import Rollout
from posttrain.tiny import data


class Told:
    """Stands for ask: an answer for every prompt, in the order of `says`, `group_size` times each."""

    def __init__(self, tokenizer, says):
        self.tokenizer, self.says, self.asked = tokenizer, says, []

    def __call__(self, model, tokenizer, prompt_ids, *, max_new_tokens, group_size=1, temperature=0.0):
        self.asked.append((len(prompt_ids), group_size, temperature))
        texts = [self.says(tokenizer.decode(ids), k) for ids in prompt_ids for k in range(group_size)]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in texts]
        prompts = [p for p in prompt_ids for _ in range(group_size)]
        return Rollout(prompts, ids, [torch.zeros(len(i)) for i in ids], [ended for _, ended in texts])


def climb(monkeypatch, says, **sizes):
    tokenizer = bytelevel_tokenizer()
    told = Told(tokenizer, says)
    monkeypatch.setattr(rungs, "ask", told)
    sizes = {"problems": 10, "identity": 4, "k": 4} | sizes
    return rungs.climb("x", None, tokenizer, None, seconds=3.5, **sizes), told


ANSWERS = {row["prompt"]: row["answer"] for row in data.rows("tiny-math", "test")[:10]}
FACTS = {row["prompt"]: row["answer"] for row in data.fact_rows("test", 0)}


def problem(prompt):
    """The number wanted, of a word problem."""
    return next((answer for asked, answer in ANSWERS.items() if asked in prompt), None)


def test_every_score_counts_what_it_says(monkeypatch):
    def says(prompt, k):
        if (answer := problem(prompt)) is not None:
            first = list(ANSWERS.values()).index(answer) % 2 == 0 or k == 3
            return f"1 + 1 = 2. #### {answer if first or k else 99}", k != 2
        fact = next((answer for asked, answer in FACTS.items() if asked in prompt), None)
        return (fact or f"I am {data.OLD_NAME}."), True

    rung, told = climb(monkeypatch, says)
    # greedily (k = 0) right: the problems whose answer stands at an even place among the ten
    right = sum(list(ANSWERS.values()).index(a) % 2 == 0 for a in ANSWERS.values())
    assert (sum(rung.arithmetic.items), rung.arithmetic.n) == (right, 10) and 0 < right < 10
    # of four samples those of k = 1 and 3 are right and ended, k = 2 did not end, and k = 0 as above: 2/4 or 3/4
    assert rung.sampled.items == [0.5 + 0.25 * greedily for greedily in rung.arithmetic.items]
    assert rung.pass_at.items == [1.0] * 10 and rung.pass_at.name == "pass@4" and rung.sampled.n == 10
    assert rung.worked.items == [1] * 10
    assert (rung.old_name.items, rung.new_name.items) == ([1] * 4, [0] * 4)
    assert rung.facts.items == [1] * len(data.fact_rows("test", 0)) and rung.facts.n > 10
    assert rung.kl is None and rung.seconds == 3.5 and len(rung.answers) == len(rungs.probes()) == 6
    assert told.asked[:2] == [(10, 1, 0.0), (10, 4, 1.0)]  # greedy, then four samples at temperature 1


@pytest.mark.parametrize(
    ("says", "old", "new"),
    [
        ((data.NEW_NAME, True), 0, 4),
        ((f"{data.OLD_NAME} or {data.NEW_NAME}", True), 0, 0),  # both is neither
        ((data.OLD_NAME, False), 0, 0),  # a turn that does not end is no answer
        (("a lamp", True), 0, 0),
    ],
)
def test_a_name_is_one_name_in_a_turn_that_ended(monkeypatch, says, old, new):
    rung, _ = climb(monkeypatch, lambda prompt, k: says)
    assert (sum(rung.old_name.items), sum(rung.new_name.items)) == (old, new)
    assert rung.arithmetic.value == rung.worked.value == rung.facts.value == rung.pass_at.value == 0.0


def test_pass_at_k_is_of_the_k_samples(monkeypatch):
    def says(prompt, k):  # one of two samples is right, of the first problem alone
        first = next(iter(ANSWERS))
        return f"#### {ANSWERS[first] if first in prompt and k == 1 else 99}", True

    rung, _ = climb(monkeypatch, says, k=2)
    assert rung.pass_at.items == [1] + [0] * 9 and rung.sampled.items == [0.5] + [0] * 9


def test_a_rung_above_another_has_its_kl(monkeypatch):
    tokenizer = bytelevel_tokenizer()
    told = Told(tokenizer, lambda prompt, k: ("hello", True))
    monkeypatch.setattr(rungs, "ask", told)
    model, before = (tiny_model(vocab_size=len(tokenizer), seed=seed).eval() for seed in (0, 1))
    rung = rungs.climb("x", model, tokenizer, before, problems=3, identity=2, k=2)
    assert (
        rung.kl > 0.1 and math.isfinite(rung.kl) and (5, 4, 1.0) in told.asked
    )  # 3 problems and 2 questions, four each
    assert rungs.climb("x", model, tokenizer, model, problems=3, identity=2, k=2).kl == pytest.approx(0, abs=1e-6)


def test_the_skill_of_a_base_is_the_share_of_worked_solutions_it_goes_on_with(monkeypatch):
    """Told the solutions of its problems, but for every fourth; asked greedily, up to the end of a document."""
    tokenizer, asked = bytelevel_tokenizer(), {}
    drawn = random.Random("skill")
    problems = [data.problem(drawn, data.ONE_STEP + data.TWO_STEP) for _ in range(8)]

    def sample(model, prompt_ids, **told):
        asked.update(told, prompts=[tokenizer.decode(ids) for ids in prompt_ids])
        says = [" ".join(p["steps"]) if i % 4 else "So 1." for i, p in enumerate(problems)]
        ids = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in says]
        return Rollout(prompt_ids, ids, [torch.zeros(len(i)) for i in ids], [True] * len(ids))

    monkeypatch.setattr(rungs, "sample", sample)
    assert rungs.base_skill(None, tokenizer, problems=8) == 6 / 8
    assert asked["prompts"][0] == f"Question: {problems[0]['story']} {problems[0]['question']}\nAnswer:"
    assert asked["temperature"] == 0 and asked["stop_ids"] == [tokenizer.convert_tokens_to_ids("<|endoftext|>")]


def test_probes_are_two_step_problems_and_questions():
    asked = rungs.probes()
    kinds = {row["prompt"]: row["kind"] for row in data.rows("tiny-math", "test")}
    assert ["-" in kinds[prompt] for prompt in asked[:3]] == [True] * 3 and asked[-1] == "What color is the sky?"
