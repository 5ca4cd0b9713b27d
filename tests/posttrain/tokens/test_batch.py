import torch

from posttrain.tokens.batch import Example, Packed, block_mask, collate, collate_packed, pack, pad_values

A, B, C = (Example.of([0] * 3, [1] * (n - 3)) for n in (9, 14, 6))


def test_collate():
    batch = collate([Example.of([5, 6], [7]), Example.of([5], [8, 9, 0])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [5, 8, 9, 0]]
    assert batch.attention_mask.tolist() == [
        [True, True, True, False],
        [True] * 4,
    ]  # the last 0 of row 2 is a token: lengths decide
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.completion_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch.active.tolist() == [[False, True, False], [True, True, True]]


def test_num_active_does_not_count_a_first_token_that_nothing_predicts():
    assert Example([1, 2, 3], [True, True, True]).num_active == 2
    assert Example.of([1], [2]).muted().num_active == 0


def test_pad_values_lays_numbers_under_their_tokens():
    examples = [Example.of([5, 6], [7]), Example.of([5], [8, 9])]
    out = pad_values([torch.tensor([-1.0]), torch.tensor([-2.0, -3.0])], examples, 3)
    assert out.tolist() == [[0.0, -1.0], [-2.0, -3.0]]


def test_collate_packed():
    batch = collate_packed(
        [Packed((Example.of([5, 6], [7]), Example([8, 9], [True, True]))), Packed((Example.of([1], [2]),))], pad_id=0
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    # 8 begins a text that is trained whole: nothing predicts it, alone or packed
    assert batch.completion_mask.tolist() == [[False, False, True, False, True], [False, True, False, False, False]]
    assert batch.attention_mask is None


def test_block_mask_by_hand():
    # positions 0 1 | 0 1: token 2 sees itself, token 3 sees 2 and 3
    may_look = block_mask(torch.tensor([[0, 1, 0, 1]]), torch.float32)[0, 0] == 0
    assert may_look.tolist() == [[True, False, False, False], [True, True, False, False],
                                 [False, False, True, False], [False, False, True, True]]  # fmt: skip


def test_pack_fills_rows_and_splits_nothing():
    packs = pack([A, B, C, A], 20)  # 14 + 6, then 9 + 9
    assert [[len(e) for e in p.examples] for p in packs] == [[14, 6], [9, 9]]
    assert [len(e) for p in pack([B], 5) for e in p.examples] == [14]  # longer than a row: alone
