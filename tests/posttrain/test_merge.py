"""The merged model answers like the adapter model, on plain, 4-bit and 8-bit bases; one that does not is not written."""

import errno
from pathlib import Path

import pytest
import torch
from kit import CHATML, LLAMA3, bytelevel_tokenizer, run_loop, tiny_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from loops import sft
from posttrain import models
from posttrain.errors import UserError
from posttrain.merge import main, merge
from posttrain.models import lora

IDS = torch.arange(20, 60)[None]


def trained(base, place, **changes):
    """An adapter after four steps of SFT."""
    rows = [{"prompt": "Who?", "completion": "Me."}] * 16
    return run_loop(sft, base, place, rows=rows, model__adapter="lora", training__learning_rate=1e-2, **changes)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """{quantization: folder of an adapter that SFT has trained}"""
    path = tmp_path_factory.mktemp("merge")
    base = tiny_folder(path / "base", hidden_size=64, intermediate_size=128)
    out = {}
    for bits in ("none", "4bit", "8bit"):
        out[bits] = str(trained(base, path / bits, model__quantization=bits).folder / "model")
    return out


def adapter_logits(folder):
    base = lora.base_of(folder)
    full = models.load(base.name, quantization=base.quantization, dtype=base.dtype)[0]
    model = lora.go_on(full, folder, base.name).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(("bits", "tolerance"), [("none", 1e-5), ("4bit", 1e-5), ("8bit", 0.3)])
def test_merged_is_the_adapter_model(tmp_path, adapters, bits, tolerance):
    lines = merge(adapters[bits], str(tmp_path / "merged"))
    assert "argmax agreement" in lines[1] and "max |Δlogit|" in lines[1]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")  # no peft, no bitsandbytes
    torch.testing.assert_close(plain(input_ids=IDS).logits, adapter_logits(adapters[bits]), atol=tolerance, rtol=0)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    # our own door merges an adapter in the same way
    ours = models.load(adapters[bits])[0]
    torch.testing.assert_close(ours(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-5, rtol=0)


def test_onto_the_original_weights_a_4_bit_adapter_is_another_model(tmp_path, adapters, capsys):
    with pytest.raises(UserError, match=r"is another model; use --onto auto, or --force"):
        merge(adapters["4bit"], str(tmp_path / "merged"), onto="original")
    assert not list(tmp_path.iterdir())
    main(["--adapter", adapters["4bit"], "--out", str(tmp_path / "merged"), "--onto", "original", "--force"])
    assert "onto the original weights" in capsys.readouterr().out and (tmp_path / "merged" / "config.json").is_file()


def test_bf16(tmp_path, adapters):
    merge(adapters["none"], str(tmp_path / "merged"), dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
    with pytest.raises(UserError, match="is another model"):
        merge(adapters["none"], str(tmp_path / "exact"), dtype="bfloat16", threshold=1e-4)


def test_refusals(tmp_path, adapters):
    with pytest.raises(UserError, match="no LoRA adapter there"):
        merge(str(tmp_path), str(tmp_path / "merged"))
    with pytest.raises(UserError, match="already exists"):
        merge(adapters["none"], str(tmp_path))
    with pytest.raises(UserError, match="nothing says that the base was quantised"):
        merge(adapters["none"], str(tmp_path / "merged"), onto="dequantized")
    with pytest.raises(UserError, match=r"which cannot be folded into quantised weights: give its base as model.name"):
        models.load(adapters["none"], quantization="4bit")


@pytest.fixture
def make(tmp_path):
    """An adapter trained on a model of this kind; extra model keys as given."""

    def made(kind="llama", tokenizer=None, **keys):
        base = tiny_folder(
            tmp_path / "base",
            kind,
            tokenizer,
            **{"llama": {"hidden_size": 64, "intermediate_size": 128}, "gpt2": {"n_embd": 64}}[kind],
        )
        return trained(base, tmp_path, **keys)

    return made


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gpt2_keeps_its_transposed_layers(tmp_path, make, bits):
    """Dequantising leaves Linear layers where the architecture has Conv1D: the folder must load, the right way round."""
    result = make("gpt2", model__quantization=bits)
    merge(str(result.folder / "model"), str(tmp_path / "merged"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    difference = (plain(IDS).logits - result.model.eval()(IDS).logits).abs().max()
    assert difference < (1e-4 if bits == "4bit" else 0.3)


def test_a_4_bit_base_that_was_read_in_bf16_is_quantised_from_bf16_again(tmp_path, make):
    """From float32 other 4-bit codes come out (2 % of the weight): another model than the one that was trained."""
    result = make(model__quantization="4bit", model__dtype="bfloat16")
    assert lora.base_of(result.folder / "model").dtype == torch.bfloat16
    merge(str(result.folder / "model"), str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for name, module in result.model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            from bitsandbytes.functional import dequantize_4bit

            trained_on = dequantize_4bit(module.base_layer.weight.data, module.base_layer.weight.quant_state).float()
            expected = trained_on + module.get_delta_weight("default").float()
            torch.testing.assert_close(merged[f"{name}.weight"], expected, atol=1e-5, rtol=1e-4)


def test_the_adapters_own_chat_template_is_the_merged_models(tmp_path, make):
    result = make(tokenizer=bytelevel_tokenizer(LLAMA3, bos="<s>", eos="<|eot_id|>"))
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "model")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(result.folder / "model")
    merge(str(result.folder / "model"), str(tmp_path / "merged"))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == CHATML


def test_a_nan_is_not_below_any_threshold(tmp_path, adapters, monkeypatch):
    from posttrain import merge as module

    real, calls = module._logits, []

    def second_time_nan(model, tokenizer):
        calls.append(1)
        return [x * (float("nan") if len(calls) == 2 else 1) for x in real(model, tokenizer)]

    monkeypatch.setattr(module, "_logits", second_time_nan)
    with pytest.raises(UserError, match="is another model"):
        merge(adapters["none"], str(tmp_path / "merged"))
    assert not list(tmp_path.iterdir())


def test_an_adapter_on_a_tied_head_is_refused(tmp_path, make):
    with pytest.raises(UserError, match="the output head is tied to the embeddings"):
        make("gpt2", model__lora__targets=["c_attn", "lm_head"])


def test_the_folder_of_a_run_will_do_and_nothing_that_stands_there_is_removed(tmp_path, adapters, monkeypatch):
    run = str(Path(adapters["none"]).parent)
    mine = tmp_path / "m.part/mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"--out .*/m: .*/m.part already exists: name another folder, or remove it"):
        merge(run, str(tmp_path / "m"))
    assert mine.read_text() == "mine"
    assert merge(run, str(tmp_path / "merged"))[-1] == f"wrote {tmp_path}/merged"
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"/full: cannot be written: No space left on device$"),
    ):
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
        merge(run, str(tmp_path / "full"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.part", "merged"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")
