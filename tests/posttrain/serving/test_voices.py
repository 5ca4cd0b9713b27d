"""Adapters beside their base, loaded and unloaded while it is there."""

import json
from pathlib import Path

import pytest
import torch
from kit import run_loop
from safetensors.torch import load_file, save_file

from loops import sft
from posttrain import models
from posttrain.errors import UserError
from posttrain.serving.voices import Voices, load_all, name_and_path

ROWS = [{"prompt": f"Is {i} even?", "completion": "Yes." if i % 2 == 0 else "No."} for i in range(8)]
IDS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, llama):
    """Two adapters of the same model, trained a little, with another seed each."""
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        run_loop(
            sft, llama, folder, rows=ROWS, model__adapter="lora", training__learning_rate=5e-2, training__seed=seed
        )
        found.append(str(folder / "run/model"))
    return found


def logits(voice):
    voice.switch_on()
    with torch.no_grad():
        return voice.model(input_ids=torch.tensor([IDS])).logits[0]


def merged(name):
    model, _, _ = models.load(name)
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0]


def close(a, b):
    return torch.allclose(a, b, atol=1e-4)


def test_a_name_or_a_path_that_is_its_name():
    assert name_and_path("nova=outputs/dpo/model") == ("nova", "outputs/dpo/model")
    assert name_and_path("outputs/dpo/") == ("outputs/dpo", "outputs/dpo/")
    assert name_and_path("outputs/lr=1e-3/model") == ("outputs/lr=1e-3/model", "outputs/lr=1e-3/model")


def test_the_base_and_two_adapters_in_any_order(llama, adapters):
    a, b = adapters
    voices, _ = load_all([f"base={llama}"], [f"a={a}", f"b={b}"], device="auto", dtype="auto", max_length=None)
    assert list(voices) == ["base", "a", "b"] and voices["b"].base == "base"
    expected = {"base": merged(llama), "a": merged(a), "b": merged(b)}
    assert not close(expected["a"], expected["b"]) and not close(expected["a"], expected["base"])
    for name in ("a", "base", "b", "a", "b", "base", "base", "a"):
        assert close(logits(voices[name]), expected[name]), name
    assert len({id(voice.model) for voice in voices.values()}) == 1, "the base's weights are there once"
    voices.unload_adapter("a")
    assert close(logits(voices["b"]), expected["b"]) and close(logits(voices["base"]), expected["base"])
    voices.unload_adapter("b")
    assert close(logits(voices["base"]), expected["base"]) and not hasattr(voices["base"].model, "peft_config")
    voices.load_adapter("again", a)
    assert close(logits(voices["again"]), expected["a"]) and close(logits(voices["base"]), expected["base"])


def test_a_run_folder_as_model_is_merged(adapters):
    voices, _ = load_all([adapters[0]], [], device="cpu", dtype="float32", max_length=None)
    assert close(logits(next(iter(voices.values()))), merged(adapters[0]))


def test_names_with_dots_and_slashes(llama, adapters):
    voices, _ = load_all([llama], [], device="cpu", dtype="float32", max_length=None)
    voices.load_adapter("org/name-v1.0", adapters[0])
    assert close(logits(voices["org/name-v1.0"]), merged(adapters[0]))


def changed(folder, adapter, *, weights=None, **config):
    """A copy of the adapter with another config, or other weights."""
    folder.mkdir()
    for file in Path(adapter).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    how = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(how | config))
    if weights is not None:
        save_file(weights(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize("carries", [False, True])
def test_what_cannot_be_loaded_leaves_everything_as_it_was(tmp_path, llama, adapters, carries):
    """Of another shape, of other layers: peft sees it when its own layers are in the model already."""
    a, b = adapters
    voices, _ = load_all([llama], [f"a={a}"] if carries else [], device="cpu", dtype="float32", max_length=None)
    wrong = changed(tmp_path / "shape", b, r=99, lora_alpha=1)
    fewer = changed(tmp_path / "fewer", b, weights=lambda w: {n: t for n, t in w.items() if ".layers.0." in n})
    more = changed(tmp_path / "more", b, weights=lambda w: w | {n.replace(".layers.0.", ".layers.9."): t.clone() for n, t in w.items()})  # fmt: skip
    for folder, says in ((wrong, "size mismatch"), (fewer, "it is for other layers"), (more, "it is for other layers")):
        with pytest.raises(UserError, match=says):
            voices.load_adapter("b", folder)
        assert "b" not in voices and close(logits(voices[llama]), merged(llama))
        assert not carries or close(logits(voices["a"]), merged(a))
    voices.load_adapter("b", b)  # and nothing is left of what was tried under this name
    assert close(logits(voices["b"]), merged(b)) and close(logits(voices[llama]), merged(llama))


@pytest.mark.parametrize("how", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "OLoRA"}, {"layer_replication": [[0, 2], [1, 2]]}])  # fmt: skip
def test_an_adapter_that_would_change_its_base_is_not_put_beside_it(tmp_path, llama, adapters, how):
    voices, _ = load_all([llama], [], device="cpu", dtype="float32", max_length=None)
    with pytest.raises(UserError, match=f"{next(iter(how))}.*, which changes the base"):
        voices.load_adapter("x", changed(tmp_path / "x", adapters[0], **how))
    assert close(logits(voices[llama]), merged(llama))


def test_what_is_refused(tmp_path, llama, adapters):
    voices = Voices(device="cpu", dtype=torch.float32, max_length=64)
    voices.load("m", llama)
    assert voices["m"].limit == 64
    with pytest.raises(UserError, match="two models are called m"):
        voices.load("m", llama)
    with pytest.raises(UserError, match="no LoRA adapter there"):
        voices.load_adapter("x", llama)
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(adapters[0]).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match="SEQ_CLS"):
        voices.load_adapter("x", str(other))
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "somewhere/else"}))
    assert any("trained on somewhere/else" in line for line in voices.load_adapter("y", str(other)))
    (other / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be loaded onto"):
        voices.load_adapter("z", str(other))
    assert list(voices) == ["m", "y"] and close(logits(voices["m"]), merged(llama))
    for broken in ("{", "[]", '{"peft_type": "LORA"}'):
        (other / "adapter_config.json").write_text(broken)
        with pytest.raises(UserError, match=r"its adapter_config\.json cannot be read"):
            voices.load_adapter("z", str(other))
    with pytest.raises(UserError, match="reads at most 256"):
        Voices(device="cpu", dtype=torch.float32, max_length=300).load("m", llama)
