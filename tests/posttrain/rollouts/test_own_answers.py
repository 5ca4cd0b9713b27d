"""Which rows of a step the student answers itself, and what comes back."""

from kit import small_config

from posttrain import models
from posttrain.rollouts import own_answers
from posttrain.tokens.batch import Example


def test_which_rows_are_asked_is_drawn_by_seed_and_step_among_those_with_room():
    examples = [Example.of([1] * n, [2, 3]) for n in (1, 2, 3, 4)]

    def draws(**how):
        return [
            row.draw for row in own_answers.chosen(examples, 0.5, how.pop("room", 4), **{"seed": 0, "step": 0} | how)
        ]

    assert draws() == draws() and sum(draw is not None for draw in draws()) == 2
    assert all(draw in (None, i) for i, draw in enumerate(draws()))
    assert (
        len({tuple(draws(step=step)) for step in range(20)}) > 3 and len({tuple(draws(seed=s)) for s in range(20)}) > 3
    )
    assert draws(room=1)[1:] == [None] * 3 and draws(room=1)[0] == 0
    text = own_answers.chosen([Example([1, 2], [True, True])], 1.0, 10, seed=0, step=0)
    assert text[0].draw is None and text[0].muted().example.num_active == 0


def test_an_own_answer_takes_the_place_of_the_given_one(llama, tmp_path):
    model, tokenizer, _ = models.load(llama)
    config = small_config("distill", llama, tmp_path, distill__on_policy=0.5)
    rows = [own_answers.Row(Example.of([5, 6, 7], [8]), draw=1), own_answers.Row(Example.of([9], [10, 11]))]
    window, told = own_answers.answered([rows], model, tokenizer, config.distill, rows=4, seed=0, step=2)
    asked, given = window[0]
    assert given == rows[1].example and asked.input_ids[:3] == [5, 6, 7] and asked.num_active <= 6
    assert told["completion_length"] == (asked.num_active, 1)
    again, _ = own_answers.answered([[rows[0]]], model, tokenizer, config.distill, rows=4, seed=0, step=2)
    assert again[0][0] == asked  # whatever else is in the window
    assert own_answers.answered([[rows[1]]], model, tokenizer, config.distill, rows=4, seed=0, step=2)[1] == {
        "completion_length": (0.0, 0.0), "finished": (0.0, 0.0),
    }  # fmt: skip
