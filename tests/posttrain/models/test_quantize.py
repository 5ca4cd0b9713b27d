"""Frozen weights in 4 and 8 bits: that an evaluation does not spoil the next gradient, and what is said where nothing works."""

import sys

import pytest
import torch
from kit import tiny_folder, tiny_model

from posttrain import models
from posttrain.config.keys import Lora
from posttrain.errors import UserError
from posttrain.models import checks, lora, quantize
from posttrain.tokens.batch import Example, collate

WIDE = dict(hidden_size=64, intermediate_size=128)  # the 4-bit blocks hold 64 weights


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"), **WIDE)


def policy(name, bits, guarded=True, monkeypatch=None):
    if not guarded:
        monkeypatch.setattr(quantize, "guard", lambda model: model)
        monkeypatch.setattr(checks, "refuse_seeing_the_future", lambda *_: None)  # an evaluation pass itself
    torch.manual_seed(0)
    loaded = models.load(name, quantization=bits)[0]
    adapted = lora.add(loaded, Lora(rank=4), name)
    for n, p in adapted.named_parameters():
        if "lora_B" in n:
            p.data.normal_(std=0.1)
    made = models.CompletionLogps.__new__(
        models.CompletionLogps
    )  # without the probe, which is an evaluation pass itself
    torch.nn.Module.__init__(made)
    made.model, made.head_form = adapted.train(), models.logps.Head()
    made.keep_bytes, made.needs_block_mask, made.shares_prompts = 0, False, False
    return made


def gradients(policy):
    batch = collate([Example.of([20, 21], [30, 31, 32]), Example.of([22], [40, 41])], 0)
    policy.zero_grad()
    policy(batch)[0].sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])


def evaluation_pass(policy):
    with torch.no_grad():
        policy.model.eval()
        policy.model(input_ids=torch.arange(20, 32)[None])
        policy.model(input_ids=torch.arange(20, 21)[None])
    policy.model.train()


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_before_an_evaluation_are_those_after(llama, bits):
    made = policy(llama, bits)
    before = gradients(made)
    evaluation_pass(made)
    assert before.abs().max() > 1e-3 and torch.equal(before, gradients(made))


def test_this_is_what_the_guard_is_for(llama, monkeypatch):
    """On a CPU with AVX512-BF16 the unguarded gradients are garbage after one evaluation; elsewhere nothing happens."""
    from bitsandbytes.functional import has_avx512bf16

    made = policy(llama, "4bit", guarded=False, monkeypatch=monkeypatch)
    before = gradients(made)
    evaluation_pass(made)
    try:
        after = gradients(made)
    except RuntimeError:  # the repacked weight need not even have a usable shape
        after = before + 1
    assert torch.equal(before, after) != has_avx512bf16()


def test_four_bits_are_what_they_say(llama):
    """The gradient on 4-bit weights is that on the plain weights they stand for."""
    made = policy(llama, "4bit")
    assert quantize.bits_of(made.model) == "4bit"
    plain = quantize.dequantize(models.load(llama, quantization="4bit")[0])
    assert quantize.bits_of(plain) == "none"
    stored = sum(p.numel() * p.element_size() for n, p in made.named_parameters() if "base_layer" in n)
    whole = sum(p.numel() * 4 for n, p in plain.named_parameters() if "proj" in n)
    assert stored == whole / 8  # 4 bits against 32
    ids = torch.arange(20, 32)[None]
    with made.model.disable_adapter():
        torch.testing.assert_close(made.model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_the_head_and_the_embeddings_stay_as_they_are(llama):
    loaded = models.load(llama, quantization="4bit")[0]
    original = tiny_model(vocab_size=loaded.config.vocab_size, **WIDE)
    assert torch.equal(loaded.get_output_embeddings().weight, original.get_output_embeddings().weight)
    assert torch.equal(loaded.get_input_embeddings().weight, original.get_input_embeddings().weight)


def test_without_bitsandbytes_one_line_offers_none(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"bitsandbytes does not work here .*; use model.quantization: none") as error:
        models.load(llama, quantization="4bit")
    assert "\n" not in str(error.value)


def test_a_backend_that_fails_on_this_machine(llama, monkeypatch):
    import bitsandbytes

    def broken(*arguments, **names):
        raise RuntimeError("no library for this GPU\nlong story")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    with pytest.raises(UserError, match=r"\(no library for this GPU\); use model.quantization: none"):
        models.load(llama, quantization="4bit")


def test_a_cast_leaves_the_rotary_frequencies_alone(llama):
    """A folder that holds an adapter, stored in bf16: weights rounded, positions not."""
    merged = quantize.cast(models.load(llama)[0], torch.bfloat16)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert all(b.dtype == torch.float32 for n, b in merged.named_buffers() if "inv_freq" in n)


def test_a_checkpoint_stored_in_4_bits_is_not_trained_whole(tmp_path, llama):
    from loops import sft
    from posttrain.config import load

    models.load(llama, quantization="4bit")[0].save_pretrained(tmp_path / "m")
    models.load(llama)[1].save_pretrained(tmp_path / "m")
    config = load("configs/sft_tiny.yaml", {"model.name": str(tmp_path / "m"), "output.dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=r"is stored in 4bit, which cannot be trained: set model.adapter: lora"):
        sft.train(config, rows=[{"prompt": "a", "completion": "b"}])
