"""Plain products for short rows in 16 bits on a CPU: what the fused kernel computes, and no more kept of it."""

import pytest
import torch
from kit import MORE_KINDS, SIZES, model_of_any, tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posttrain import models
from posttrain.models import no_dropout, short_rows

CPU, BF16 = torch.device("cpu"), torch.bfloat16
TOKENS = torch.randint(20, 400, (3, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(12) < torch.tensor([[12], [7], [9]])
LEFT = MASK.flip(1)


@pytest.fixture
def always(monkeypatch):
    """Short rows in 32 bits too, where both ways agree to six digits; counts how often they were taken."""
    taken = []

    def are_short(dtype, device, queries, keys):
        taken.append((queries, keys))
        return queries > 1

    monkeypatch.setattr(short_rows, "are_short", are_short)
    return taken


def said(model, mask):
    """logits of real tokens, and the gradient of a sum in which each has a weight of its own"""
    model.zero_grad()
    logits = model(input_ids=TOKENS, attention_mask=mask, position_ids=(mask.long().cumsum(1) - 1).clamp(0)).logits
    real = logits[mask].log_softmax(-1)
    (real * torch.linspace(0.5, 1.5, real.numel()).view_as(real)).sum().backward()
    return real.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def both(model, mask):
    fused = said(model, mask)
    short_rows.use(model)
    assert model.config._attn_implementation == "sdpa_unless_short"
    return fused, said(model, mask)


FUSED = [kind for kind in [*SIZES, *MORE_KINDS] if kind != "gemma2"]  # whose soft caps the fused kernel does not know


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK, LEFT], ids=["none", "padded", "padded on the left"])
def test_the_same_log_probs_and_gradients(always, kind, mask):
    fused, plain = both(no_dropout_of(model_of_any(kind)), mask)
    assert always == [(12, 12)] * 2 and plain[1].abs().max() > 0.1
    torch.testing.assert_close(plain[0], fused[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain[1], fused[1], atol=1e-5 * fused[1].abs().max().item(), rtol=1e-4)


def no_dropout_of(model):
    no_dropout(model)
    return model


def test_a_window_stays(always):
    windowed = tiny_model("mistral", sliding_window=4)
    fused, plain = both(windowed, MASK)
    torch.testing.assert_close(plain[0], fused[0], atol=1e-5, rtol=1e-5)
    assert (plain[0] - said(tiny_model("mistral", sliding_window=None), MASK)[0]).abs().max() > 0.1


def test_in_16_bits_it_is_as_near_to_32_as_the_fused_kernel():
    true = said(tiny_model("llama"), MASK)
    fused, plain = both(tiny_model("llama").to(BF16), MASK)
    assert not torch.equal(plain[1], fused[1])  # another way of computing it
    for ours, theirs, exact in zip(plain, fused, true, strict=True):
        assert (ours.float() - exact).norm() < 1.2 * (theirs.float() - exact).norm()


def test_under_autocast_too(monkeypatch):
    """Where the rotary embedding hands on queries and keys in 32 bits."""
    model, asked, real = tiny_model("llama"), [], short_rows.are_short
    monkeypatch.setattr(short_rows, "are_short", lambda *of: asked.append(real(*of)) or asked[-1])
    true = said(model, MASK)
    with torch.autocast("cpu", BF16):
        fused, plain = both(model, MASK)
    assert asked == [True, True] and not torch.equal(plain[1], fused[1])
    for ours, theirs, exact in zip(plain, fused, true, strict=True):
        assert (ours.float() - exact).norm() < 1.2 * (theirs.float() - exact).norm()


def test_nothing_more_is_kept_for_the_backward_pass(always):
    """Of 2 rows of 64 tokens and 4 heads: the weights would be 2 x 4 x 64 x 64 = 32,768 numbers a layer."""
    tokens, kept = torch.randint(20, 400, (2, 64)), {}
    for name in ("fused", "plain"):
        model, sizes = tiny_model("llama"), {}
        if name == "plain":
            short_rows.use(model)

        def pack(x, sizes=sizes):
            sizes[x.data_ptr()] = x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(input_ids=tokens)
        kept[name] = sum(sizes.values())
    # A layer's mask of 64 x 64 bytes, where the fused kernel keeps a sum for each of 2 x 4 x 64 queries, in 4 bytes.
    assert kept["plain"] - kept["fused"] == 2 * (64 * 64 - 2 * 4 * 64 * 4)


@pytest.mark.parametrize("sharp", [1, 8])
@pytest.mark.parametrize(("heads", "of_key"), [(6, 6), (6, 2)])
def test_its_rounding_is_about_that_of_the_fused_kernel(sharp, heads, of_key):
    """Against 64 bits; `sharp` heads are those of a trained model, with scores of 30."""
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, of_key, of_key, heads)
    query, key, value, upstream = (torch.randn(4, n, 96, 64, generator=generator).to(BF16) for n in shapes)
    mask = torch.ones(96, 96, dtype=torch.bool).tril()

    def fused(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def plain(q, k, v):
        return short_rows.Plain.apply(q, k, v, mask[None, None], 64**-0.5).transpose(1, 2)

    def numbers(function, dtype):
        leaves = [x.to(dtype).clone().requires_grad_() for x in (sharp * query, key, value)]
        out = function(*leaves)
        out.backward(upstream.to(dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    exact = numbers(fused, torch.float64)
    for ours, theirs, true in zip(numbers(plain, BF16), numbers(fused, BF16), exact, strict=True):
        assert (ours - true).norm() < 2.5 * (theirs - true).norm() and (ours - true).norm() < 0.02 * true.norm()


def test_its_gradient(monkeypatch):
    """By finite differences in 64 bits; two heads share a key-value head, one query sees a single key."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # the scores, too
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, n, length, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n, length in ((4, 3), (2, 5), (2, 5))]  # fmt: skip
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril()
    assert torch.autograd.gradcheck(lambda *x: short_rows.Plain.apply(*x, mask, 0.7), leaves)


def test_dropout_is_left_to_the_fused_kernel(always):
    model = tiny_model("llama", attention_dropout=0.5).train()
    short_rows.use(model)
    model(input_ids=TOKENS)
    assert not always


def test_answers_are_sampled_as_before(always):
    plain, switched = tiny_model("llama"), tiny_model("llama")
    short_rows.use(switched)
    how = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=LEFT.long())
    assert torch.equal(switched.generate(TOKENS, **how), plain.generate(TOKENS, **how))
    assert {queries for queries, _ in always} == {12, 1}  # one at a time after the prompt: fused


@pytest.mark.parametrize(
    ("dtype", "device", "queries", "keys", "short"),
    [
        (BF16, "cpu", 181, 181, True),  # 32,761 scores of at most 32,768
        (BF16, "cpu", 182, 182, False),  # 33,124
        (torch.float16, "cpu", 64, 512, True),  # answers that look at a long prompt
        (BF16, "cpu", 1, 30, False),
        (torch.float32, "cpu", 80, 80, False),
        (BF16, "cuda", 80, 80, False),
    ],
)
def test_which_rows_are_short(dtype, device, queries, keys, short):
    assert short_rows.are_short(dtype, torch.device(device), queries, keys) is short


def test_auto_takes_it_and_sdpa_does_not(tmp_path, llama):
    assert models.load(llama)[0].config._attn_implementation == "sdpa_unless_short"
    assert models.load(llama, attn_implementation="sdpa")[0].config._attn_implementation == "sdpa"
    model = models.load(llama)[0]
    model.save_pretrained(tmp_path)
    assert "unless_short" not in (tmp_path / "config.json").read_text()


def test_an_architecture_with_an_attention_of_its_own_keeps_it():
    """Falcon asks by name whether it is "sdpa"."""
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING["falcon"](hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=411))  # fmt: skip
    made.set_attn_implementation = None  # it would only warn
    short_rows.use(made)
    assert made.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("is_causal", "keys"), [(False, 12), (True, 15)])
def test_without_a_mask_only_the_causal_square_is_ours(always, is_causal, keys):
    """An encoder's queries see all keys; fewer queries than keys see the first ones, as the library has it."""
    module = tiny_model("llama").model.layers[0].self_attn
    query, key, value = (torch.randn(2, 4, n, 8) for n in (12, keys, keys))
    ours, _ = short_rows.attend(module, query, key, value, None, is_causal=is_causal)
    seen = keys if not is_causal else 12
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key[:, :, :seen], value[:, :, :seen], is_causal=is_causal)  # fmt: skip
    assert torch.equal(ours, theirs.transpose(1, 2)) and not always


def test_what_a_layer_says_beyond_scale_and_mask_is_left_to_the_library(always):
    """A soft cap that nobody applies would be another model."""
    module, (query, key, value) = tiny_model("llama").model.layers[0].self_attn, torch.randn(3, 2, 4, 12, 8)
    with pytest.raises(ValueError, match="does not support `softcap`"):
        short_rows.attend(module, query, key, value, None, softcap=20.0)
    plain, _ = short_rows.attend(module, query, key, value, None, position_bias=None, softcap=None, use_cache=True)
    assert always == [(12, 12)]
    biased, _ = short_rows.attend(module, query, key, value, None, position_bias=torch.randn(1, 4, 12, 12))
    short_rows.attend(module, query, key, value, None, sofftcap=20.0)  # not a word that we know, so not ours to judge
    assert always == [(12, 12)] and (biased - plain).abs().max() > 0.1


def test_eager_stays_eager():
    made = tiny_model("llama")
    made.set_attn_implementation("eager")
    short_rows.use(made)
    assert made.config._attn_implementation == "eager"
