"""The cache with room: what the library's own holds, without the copies."""

import pytest
import torch
from kit import tiny_model
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from posttrain.rollouts.roomy import Roomy, roomy_cache


def test_it_holds_what_the_librarys_own_holds():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Roomy(room=3), DynamicLayer()
    rows = 2
    for step, width in enumerate((4, 1, 1, 1, 1, 2)):  # 4 + 3 fit; the fifth makes room again
        keys, values = torch.randn(2, rows, 3, width, 5, generator=generator)
        for mine, its in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, its)
        if step == 1:
            chosen = torch.tensor([1, 1, 0])
            rows = len(chosen)
            ours.batch_select_indices(chosen)
            theirs.batch_select_indices(chosen)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_a_token_is_written_and_nothing_else_moves():
    layer = Roomy(room=2)
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    place = layer.keys.data_ptr()
    layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert layer.keys.data_ptr() == place and layer.keys[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0]
    layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert layer.keys.data_ptr() != place and layer.keys[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_what_older_models_hand_every_layer_changes_nothing_and_another_word_is_refused():
    layer, ones = Roomy(room=2), torch.ones(1, 1, 3, 2)
    keys, values = layer.update(ones, 2 * ones, {"sin": ones, "cos": ones})
    assert torch.equal(keys, ones) and torch.equal(values, 2 * ones)
    layer.update(ones, ones, cache_kwargs=None)
    with pytest.raises(TypeError, match="cache_kwarg"):
        layer.update(ones, ones, cache_kwarg={})


@pytest.mark.parametrize("way", ["crop", "reset", "reorder_cache", "batch_repeat_interleave"])
def test_what_would_leave_the_store_behind_is_refused(way):
    layer = Roomy(room=2)
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    with pytest.raises(NotImplementedError, match="leave the store as it was"):
        getattr(layer, way)(*([] if way == "reset" else [1]))


def test_layers_of_another_kind_stay_the_librarys():
    assert all(type(layer) is Roomy for layer in roomy_cache(tiny_model().config, 5).layers)
    config = tiny_model("qwen2").config
    config.sliding_window, config.layer_types = 4, ["full_attention", "sliding_attention"]
    kinds = [type(layer) for layer in DynamicCache(config=config).layers]
    assert kinds == [DynamicLayer, DynamicSlidingWindowLayer]  # or this test says nothing
    assert [type(layer) for layer in roomy_cache(config, 5).layers] == [Roomy, DynamicSlidingWindowLayer]
