"""The merged model answers like the adapter model, on plain, 4-bit and 8-bit bases; one that does not is not written."""

from pathlib import Path

import pytest
import torch
from small import folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from loops import sft
from posttrain import lora, models
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.merge import main, merge

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.arange(20, 60)[None]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """{quantization: folder of an adapter that SFT has trained}"""
    path = tmp_path_factory.mktemp("merge")
    base = folder(path / "base", hidden_size=64, intermediate_size=128)
    out = {}
    for bits in ("none", "4bit", "8bit"):
        fixed = {
            "model.name": base, "model.adapter": "lora", "model.quantization": bits, "training.learning_rate": 1e-2, "output.samples": 0,
            "output.dir": str(path / bits), "training.max_steps": 4,
        }  # fmt: skip
        sft.train(load(ROOT / "configs/sft_tiny.yaml", fixed), rows=[{"prompt": "Who?", "completion": "Me."}] * 16)
        out[bits] = str(path / bits / "model")
    return out


def adapter_logits(folder):
    base, bits = lora.base_of(folder)
    model = lora.go_on(models.load(base, quantization=bits)[0], folder, base).eval()
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
