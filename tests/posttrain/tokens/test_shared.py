"""Prompts that stand once: which tokens are left, where they stand, and what is told of it."""

import pytest
import torch

from posttrain.tokens.batch import Example, collate
from posttrain.tokens.shared import Sharing, share

A, B, C = Example.of([7, 8, 9], [1, 2]), Example.of([7, 8, 9], [3, 4, 5]), Example.of([7, 9], [6])


def rows(*examples):
    return [(e.input_ids, e.prompt_length) for e in examples]


def test_each_prompt_stands_once_and_every_row_finds_its_tokens():
    s = share(rows(A, C, B))  # A and B share a prompt, also where another row lies between them
    assert s.input_ids.tolist() == [[7, 8, 9, 7, 9, 1, 2, 6, 3, 4, 5]]
    assert s.position_ids.tolist() == [[0, 1, 2, 0, 1, 3, 4, 2, 3, 4, 5]]  # an answer goes on from its prompt
    batch = collate([A, C, B], 0)
    real = batch.attention_mask
    assert torch.equal(s.input_ids[0][s.places][real], batch.input_ids[real])
    assert torch.equal(s.position_ids[0][s.places][real], batch.position_ids[real])
    assert s.prompts.tolist() == [[0, 1, 2], [3, 4, 0]] and s.prompt_lengths.tolist() == [3, 2, 3]
    assert s.prompt_of.tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 2]]
    assert s.answers.tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 10]]
    assert s.in_prompts.tolist() == [0, 1, 2, 3, 4] and s.in_answers.tolist() == [0, 1, 3, 6, 7, 8]


def test_a_row_with_nothing_to_learn_is_all_prompt():
    s = share(rows(A.muted(), A))  # no prompt is shared: the whole of the one, three tokens of the other
    assert s.input_ids.tolist() == [[7, 8, 9, 1, 2, 7, 8, 9, 1, 2]] and s.in_answers.tolist() == [2, 3]
    only = share(rows(A.muted()))
    assert only.answers.shape == (1, 0) and only.tokens == 5


def test_learned_turns_in_the_middle_belong_to_the_answer():
    turns = Example([1, 2, 3, 4, 5, 6], [False, False, True, False, False, True])
    assert turns.prompt_length == 2 and share(rows(turns, turns)).tokens == 2 + 4 + 4


def test_without_a_prompt_nothing_is_shared():
    assert share(rows(A, Example([1, 2], [True, True]))) is None


@pytest.mark.parametrize(
    ("wish", "examples", "tokens"),
    [
        ("auto", [A, B], 8),  # of 2 · 6 = 12 with the padding
        ("auto", [A, C], 8),  # of 2 · 5 = 10, four fifths: the border
        ("auto", [A, Example.of([5, 6, 7], [8])], None),  # 9 of 10
        (True, [A, Example.of([5, 6, 7], [8])], 9),
    ],
)
def test_auto_shares_where_it_pays(wish, examples, tokens):
    sharing = Sharing(wish)
    sharing.on = True
    shared = collate(examples, 0, sharing).shared
    assert (None if shared is None else shared.tokens) == tokens


def test_what_is_told():
    sharing = Sharing("auto")
    assert collate([A, B], 0, sharing).shared is None  # off: nothing was found out of the model
    assert sharing.told(lambda x: x) is None
    sharing.on = True
    collate([A, B], 0, sharing)  # 8 tokens for 12
    assert (sharing.read, sharing.rows) == (20, 24)
    assert sharing.told(lambda x: 2 * x) == (
        "prompts read once: 40 tokens went through the model in the place of 48, 17% fewer (training.share_prompts)"
    )


def test_a_batch_moves_whole():
    sharing = Sharing(True)
    sharing.on = True
    moved = collate([A, B], 0, sharing).to("meta")
    assert moved.shared.places.device.type == "meta" and moved.apart().shared is None
