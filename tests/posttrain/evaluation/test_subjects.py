"""A model that is asked or read: the same whatever stands beside it in a batch."""

import pytest
import torch

from posttrain import models
from posttrain.errors import UserError
from posttrain.evaluation.subjects import Subject
from posttrain.tokens.batch import Example

PROMPTS = [
    "Hello.",
    "What is your name?",
    "48 / 2 = 24 clips. " * 3,
    "one",
    "Who? " * 9,
    "x y z",
    "A1",
    "#",
    "two three",
]


@pytest.fixture(scope="module")
def subject(llama):
    return Subject.load(llama)[0]


@pytest.mark.parametrize(("samples", "temperature"), [(1, 0.0), (3, 1.0)])
def test_answers_do_not_depend_on_the_batch(subject, samples, temperature):
    found = {}
    for size in (1, 8):
        subject.batch_size = size
        found[size] = subject.ask(PROMPTS, max_new_tokens=12, samples=samples, temperature=temperature)
    assert len(found[1]) == 9 and {len(of_one) for of_one in found[1]} == {samples}
    assert [[a.text for a in of_one] for of_one in found[1]] == [[a.text for a in of_one] for of_one in found[8]]
    assert [a.logp for of_one in found[1] for a in of_one] == pytest.approx([a.logp for of_one in found[8] for a in of_one], abs=1e-4)  # fmt: skip
    assert len({a.text for of_one in found[1] for a in of_one}) > 3  # they do not all say the same


def test_samples_are_drawn_by_the_seed(subject, monkeypatch):
    one = subject.ask(PROMPTS, max_new_tokens=8, temperature=1.0)
    assert one == subject.ask(PROMPTS, max_new_tokens=8, temperature=1.0)
    monkeypatch.setattr(subject, "seed", 1)
    assert one != subject.ask(PROMPTS, max_new_tokens=8, temperature=1.0)


def test_log_probs_are_those_of_a_row_alone(subject):
    rows = [Example.of([20, 21, 22], [23, 24]), Example.of([30], [31]), Example([40, 41, 42, 43, 44, 45], [True] * 6)]
    subject.batch_size = 8
    for row, logps in zip(rows, subject.logps(rows), strict=True):
        with torch.no_grad():
            alone = subject.model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        expected = [alone[i - 1, t].item() for i, t in enumerate(row.input_ids) if i and row.completion_mask[i]]
        assert logps.tolist() == pytest.approx(expected, abs=1e-5) and logps.dtype == torch.float32


def test_the_train_flag_is_put_back_also_after_an_error(subject):
    subject.model.train()
    subject.logps([Example.of([1], [2])])
    assert subject.model.training
    with pytest.raises(ZeroDivisionError), subject.reading():
        assert not subject.model.training and not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert subject.model.training and torch.is_grad_enabled()
    subject.model.eval()


def test_a_prompt_that_does_not_fit_is_named(subject):
    assert subject.limit == 256
    with pytest.raises(
        UserError, match=r"prompt 2 has \d+ tokens, and with max_new_tokens = 240 more .* above the 256"
    ):
        subject.ask(["Hi", "word " * 40], max_new_tokens=240)
    with pytest.raises(UserError, match="row 1 has 300 tokens, the model reads at most 256"):
        subject.logps([Example.of([1] * 299, [2])])


def test_a_model_that_is_no_longer_one_is_refused(llama):
    """One weight that is not a number: greedy answers are words all the same."""
    broken, _ = Subject.load(llama)
    broken.model.get_output_embeddings().weight.data[3] = float("nan")
    for ask in (lambda: broken.ask(["Hi"], max_new_tokens=3), lambda: broken.logps([Example.of([1], [2])])):
        with pytest.raises(UserError, match=r"its log-probs are not numbers \(NaN\)"):
            ask()


def test_a_system_message_stands_before_a_prompt_that_has_none(subject):
    told, own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}]  # fmt: skip
    assert (
        subject.prompt_ids("Hi", "Be brief.")
        == subject.prompt_ids(own, "Be brief.")
        == subject.prompt_ids(told, "Other.")
    )
    assert subject.prompt_ids("Hi") != subject.prompt_ids("Hi", "Be brief.")


def test_another_model_is_loaded_once_for_all(subject, llama, monkeypatch):
    loads = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda name, **more: loads.append(more["key"]) or load(name, **more))
    others = {}
    first, second = (Subject("x", subject.model, subject.tokenizer, others=others) for _ in range(2))
    assert first.beside(llama, "--drift.base") is second.beside(llama, "--drift.base") and loads == ["--drift.base"]
    with pytest.raises(UserError, match=r"--safety.judge './nowhere': cannot be loaded"):
        first.beside("./nowhere", "--safety.judge")


def test_what_is_said_of_a_model(subject):
    about = subject.about()
    assert about["parameters"] == sum(p.numel() for p in subject.model.parameters())
    with torch.no_grad():
        next(subject.model.parameters()).view(-1)[0] += 1
        assert subject.about()["fingerprint"] != about["fingerprint"]
        next(subject.model.parameters()).view(-1)[0] -= 1
