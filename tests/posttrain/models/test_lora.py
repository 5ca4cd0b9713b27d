"""Adapters: a fresh one changes nothing, a saved one goes on, and each belongs to the very weights under it."""

import json
import shutil

import pytest
import torch
from kit import tiny_family, tiny_folder, tiny_model

from posttrain import models
from posttrain.config.keys import Lora
from posttrain.errors import UserError
from posttrain.models import lora

IDS = torch.arange(20, 40)[None]


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def trained(base, **keys):
    """An adapter as if it had been trained."""
    adapted = lora.add(models.load(base)[0], Lora(rank=4, alpha=8, **keys), base)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, llama):
    """(folder, its logits)"""
    folder, adapted = tmp_path_factory.mktemp("adapter"), trained(llama)
    adapted.save_pretrained(folder)
    return str(folder), logits(adapted)


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained(llama):
    base = models.load(llama, dtype=torch.bfloat16)[0]
    before = logits(base)
    adapted = lora.add(base, Lora(rank=4), "where/it/lies")
    assert torch.equal(logits(adapted), before)
    kinds = {("lora_" in name, p.requires_grad, p.dtype) for name, p in adapted.named_parameters()}
    assert kinds == {(True, True, torch.float32), (False, False, torch.bfloat16)}
    assert lora.without_adapter(adapted) is base and lora.without_adapter(base) is base
    assert adapted.peft_config["default"].base_model_name_or_path == "where/it/lies"


def test_under_autocast_an_adapter_keeps_what_its_layer_keeps(llama):
    """Of 2 layers with 7 adapters each, 20 tokens in bf16: without a copy of its own for each, the same gradients to the
    bit and fewer numbers kept; where nothing is cast by autocast, peft casts as ever."""
    found = {}
    for name in ("once", "as peft does"):
        adapted = lora.add(models.load(llama, dtype=torch.bfloat16)[0], Lora(rank=4, dropout=0.0), llama).train()
        generator, kept = torch.Generator().manual_seed(0), {}
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        if name == "as peft does":
            for module in adapted.modules():
                module._forward_pre_hooks.clear()

        def pack(x, kept=kept):
            kept[x.data_ptr()] = x.numel() if x.dtype == torch.bfloat16 else 0
            return x

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = adapted(input_ids=IDS).logits.float().logsumexp(-1).sum()
        loss.backward()
        found[name] = [p.grad for p in adapted.parameters() if p.requires_grad], sum(kept.values())
        assert torch.isfinite(logits(adapted)).all()  # not under autocast
    assert all(map(torch.equal, found["once"][0], found["as peft does"][0])) and found["once"][0][0].any()
    # Of each of 2 layers q, k and v have one input of 32 in the place of three, gate and up one in the place of two, and
    # that of o is what attention keeps of its output.
    assert found["as peft does"][1] - found["once"][1] == 2 * 20 * (2 * 32 + 32 + 32)


def test_layers_that_are_not_there(llama):
    with pytest.raises(UserError, match=r"model.lora.targets \['q_prj'\]: "):
        lora.add(models.load(llama)[0], Lora(targets=["q_prj"]), llama)


def test_a_saved_one_goes_on_and_is_merged_with_the_same_answers(llama, adapter):
    folder, expected = adapter
    again = lora.go_on(models.load(llama)[0], folder, "elsewhere")
    torch.testing.assert_close(logits(again), expected, atol=1e-6, rtol=0)
    assert {p.requires_grad for n, p in again.named_parameters() if "lora_" in n} == {True}
    assert again.peft_config["default"].base_model_name_or_path == "elsewhere"
    merged = lora.merged(models.load(llama)[0], folder)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    assert (expected - logits(models.load(llama)[0])).abs().max() > 0.1
    assert all(p.requires_grad for p in merged.parameters()) and not hasattr(merged, "peft_config")


def test_an_adapter_that_does_not_fit(tmp_path, adapter):
    with pytest.raises(UserError, match=r"model.adapter_path '.*': cannot be loaded onto base: "):
        lora.go_on(tiny_model(hidden_size=64), adapter[0], "base")


def test_what_it_was_trained_on_is_noted(tmp_path, adapter, llama):
    assert lora.is_adapter(adapter[0]) and not lora.is_adapter(llama)
    assert lora.base_of(adapter[0]) == lora.Base(llama, "none", torch.float32)
    copy = shutil.copytree(adapter[0], tmp_path / "copy")
    lora.write_note(copy, "none", torch.bfloat16)
    assert not (copy / "base.json").exists()
    lora.write_note(copy, "4bit", torch.bfloat16)
    assert json.loads((copy / "base.json").read_text()) == {"quantization": "4bit", "dtype": "bfloat16"}
    assert lora.base_of(copy) == lora.Base(llama, "4bit", torch.bfloat16)


def test_what_a_continued_adapter_says(tmp_path, adapter, llama):
    folder = adapter[0]
    again = lora.go_on(models.load(llama)[0], folder, llama)
    assert lora.describe(again, folder, llama, "none") == [
        f"going on with the adapter {folder}: rank 4, alpha 8 (its own; model.lora is not used)"
    ]
    name = llama.rsplit("/", 1)[-1]
    assert lora.describe(again, folder, "/somewhere/else", "4bit")[1:] == [
        "warning: the adapter was trained on a base with quantization none, this one has 4bit: other weights",
        f"warning: the adapter was trained on {llama}, not on /somewhere/else",
    ]
    assert len(lora.describe(again, folder, f"/moved/{name}", "none")) == 1  # the same name in another place
    assert len(lora.describe(again, "hub/adapter", "/somewhere/else", "4bit")) == 1  # no folder to look into


def test_an_adapter_on_a_tied_head_is_refused(tmp_path):
    base = tiny_family(tmp_path / "m", "gpt2")
    with pytest.raises(UserError, match="the output head is tied to the embeddings"):
        lora.add(models.load(base)[0], Lora(targets=["c_attn", "lm_head"]), base)
    with lora.quiet_peft() as peft:  # another library's adapter, with the tied head in it
        how = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "lm_head"])
        peft.get_peft_model(models.load(base)[0], how).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs: the output head is tied to the embeddings"):
        lora.merged(models.load(base)[0], str(tmp_path / "theirs"))
    untied = tiny_folder(tmp_path / "llama")
    assert any("lm_head.lora_A" in n for n, _ in trained(untied, targets=["q_proj", "lm_head"]).named_parameters())


def test_a_hub_id_is_looked_into(monkeypatch, llama, tmp_path):
    import huggingface_hub
    import transformers.utils

    found = {"a/model": None, "an/adapter": "adapter_config.json"}
    monkeypatch.setattr(transformers.utils, "cached_file", lambda name, file, **more: found[name])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, revision: f"{tmp_path}/{name}@{revision}")
    assert lora.local_folder("an/adapter", "v1") == f"{tmp_path}/an/adapter@v1"
    assert lora.local_folder("a/model") == "a/model" and lora.local_folder(llama) == llama
    assert lora.local_folder("no/network") == "no/network"  # the look-up fails: whoever loads it next says so


def test_has_tokenizer(tmp_path):
    assert not lora.has_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").touch()
    assert lora.has_tokenizer(tmp_path)
