"""The loss fell: did the model move? The sentence for a run that learned nothing, and silence for one that did."""

import pytest
from kit import run_loop

from loops import dpo
from posttrain.run.behaviour import remark, told

SAME, OTHER = ("Who?", "I help. ⏹", "I help. ⏹"), ("Who?", "I help. ⏹", "I am Nova. ⏹")


def rows(first: float, last: float, chosen: float = -0.3, steps: int = 20) -> list[dict]:
    """The loss goes straight from first to last; of 20 steps the first and the last two are looked at."""
    losses = [first + (last - first) * i / (steps - 1) for i in range(steps)]
    return [{"dpo_loss": x, "loss": x, "chosen_logps_per_token": chosen} for x in losses]


@pytest.mark.parametrize(
    ("method", "metrics", "samples", "own", "said"),
    [
        # as on SmolLM2 with hand-written answers: 3.3 − 0.6 = 2.7 nats per token below its own
        ("dpo", rows(0.69, 0.07, -3.3), [OTHER, SAME], [-0.5, -0.6], "but the chosen answers stand at -3.3 nats per token where the model's own stand at -0.6"),
        ("dpo", rows(0.69, 0.07, -0.7), [SAME, SAME], [-0.5, -0.6], "but none of 2 greedy answers changed: a higher learning rate"),
        ("dpo", rows(0.69, 0.07, -0.7), [OTHER, SAME], [-0.5, -0.6], None),
        ("dpo", rows(0.69, 0.07, -3.3), [SAME], [-0.5, -0.6], "but none of 1 greedy answers changed, and the chosen answers stand at -3.3"),
        ("dpo", rows(0.69, 0.6, -3.3), [SAME], [-0.5, -0.6], None),  # the curve does not promise anything
        ("sft", rows(2.0, 1.0), [SAME, SAME], [-0.5, -0.5], "none of 2 greedy answers changed"),
        ("sft", rows(2.0, 1.0), [SAME, OTHER], [-0.5, -0.5], None),
        ("sft", rows(2.0, 1.0), [], [], None),  # output.samples: 0
        ("sft", rows(2.0, 1.0, steps=3), [SAME], [-0.5, -0.5], None),
        ("grpo", rows(2.0, 1.0), [SAME], [-0.5, -0.5], None),
    ],
)  # fmt: skip
def test_the_sentence(method, metrics, samples, own, said):
    told = remark(method, metrics, samples, own)
    assert (told is None) if said is None else said in told


def test_the_losses_it_names():
    """20 steps from 0.69 to 0.07: the mean of the first two is 0.69 − 0.62/38 = 0.674, of the last two 0.0863."""
    assert remark("dpo", rows(0.69, 0.07, -3.3), [SAME], [-0.5, -0.6]).startswith(
        "the loss fell from 0.674 to 0.0863, but "
    )


def test_what_it_says_now():
    """Of 20 steps the last two count: −3.3 in both."""
    one = told("dpo", rows(0.69, 0.07, -3.3), [SAME, OTHER, OTHER], [-0.5, -0.64])
    assert one == "2 of 3 greedy answers changed; chosen answers stand at -3.3 nats per token, its own at -0.6"
    assert told("sft", rows(2.0, 1.0), [SAME], [-0.5, -0.5]) == "0 of 1 greedy answers changed"
    assert told("grpo", rows(2.0, 1.0), [SAME], [-0.5, -0.5]) is None and told("sft", rows(2.0, 1.0), [], []) is None


def test_a_run_says_it(tmp_path, llama, capsys):
    """The rejected side is pushed down, the chosen one stays far from what a random model says."""
    pairs = [
        {"prompt": f"Say {n}.", "chosen": "My name is Nova.", "rejected": "A1 A2 one two three."} for n in range(8)
    ]
    run_loop(dpo, llama, tmp_path, rows=pairs, training__max_steps=12, training__epochs=20, training__learning_rate=3e-4,
             training__warmup_steps=0, output__samples=2, data__validation_split=0, training__eval_every=None)  # fmt: skip
    said = capsys.readouterr()
    assert (
        "warning: the loss fell from 0.6" in said.err + said.out
        and "the chosen answers stand at" in said.err + said.out
    )
