"""Whose answer stands behind a prompt for KTO's z0."""

from posttrain.tokens.batch import Example
from posttrain.tokens.examples import Labelled
from posttrain.tokens.mismatched import mismatched


def test_partners_come_from_another_prompt_or_not_at_all():
    def row(prompt, answer):
        return Labelled(Example.of(prompt, answer), 1.0)

    a, b, c = row([1, 2], [3]), row([1, 2], [4, 5]), row([6], [7, 8])  # a and b answer the same prompt
    made = mismatched([a, b, c], limit=10)
    assert [m.mismatched.input_ids for m in made] == [[1, 2, 7, 8], [1, 2, 7, 8], [6, 3]]
    assert [m.mismatched.completion_mask for m in made][2] == [False, True]
    assert mismatched([a, b, c], limit=3)[0].mismatched.input_ids == [1, 2, 7]  # cut at the limit
    assert [m.mismatched.num_active for m in mismatched([a, b], limit=10)] == [0, 0]
    assert mismatched([c], limit=10)[0].mismatched.num_active == 0
    assert not made[0].muted().counts and made[0].muted().mismatched.num_active == 0 and len(made[0]) == 4
