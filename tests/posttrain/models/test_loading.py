"""Loading: names of every kind, tokenizers that do not fit, random weights; and what is said of what cannot be loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import CHATML, LLAMA3, bytelevel_tokenizer, tiny_family, tiny_folder, tiny_model, whole_models, yaml_config

from posttrain import models
from posttrain.config.keys import Lora, Model
from posttrain.errors import UserError
from posttrain.models import loading, lora

IDS = torch.arange(20, 40)[None]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, llama):
    """(the folder of an adapter on llama that has been trained, its logits)"""
    folder = tmp_path_factory.mktemp("adapter")
    model, tokenizer, _ = models.load(llama)
    adapted = lora.add(model, Lora(rank=4), llama)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    models.save(adapted, tokenizer, folder)
    with torch.no_grad():
        logits, without = adapted.eval()(input_ids=IDS).logits, models.load(llama)[0](IDS).logits
    assert (logits - without).abs().max() > 0.5  # far from the base
    return str(folder), logits


def run_in(folder):
    return SimpleNamespace(
        folder=folder, compute=torch.float32, device=torch.device("cpu"), parallel=whole_models(),
        write_start=lambda *both: [part.save_pretrained(folder / "start.part") for part in both] and str(folder / "start"),
    )  # fmt: skip


# ---------------------------------------------------------------- names


def test_a_name_is_a_folder_where_there_is_one_else_a_hub_id(tmp_path, llama, monkeypatch):
    assert loading.find(llama) == llama
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert loading.find("~/mine") == str(tmp_path / "mine")
    monkeypatch.setattr(lora, "local_folder", lambda name, revision: f"{name} at {revision}")
    assert loading.find("somebody/model", revision="v2") == "somebody/model at v2"
    for path in ("a/b/c", "./c", "/nowhere", "~/nothing"):
        with pytest.raises(UserError, match=rf"^k '{path}': cannot be loaded: no such folder"):
            loading.find(path, "k")


def test_an_embedded_name_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(loading.tiny, "path_of", lambda name: tmp_path / name)
    assert loading.find("tiny-sft") == str(tmp_path / "tiny-sft")


def test_what_is_nowhere_says_what_there_is(tmp_path):
    with pytest.raises(
        UserError, match=r"^key 'no/such': cannot be loaded: no such folder, not embedded \(tiny-base, t"
    ):
        models.load("no/such", key="key")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded: ") as problem:
        models.load(str(tmp_path))
    assert "no such folder" not in str(problem.value) and "\n" not in str(problem.value)


# ---------------------------------------------------------------- a model and its tokenizer


def test_a_folder(llama):
    model, tokenizer, lines = models.load(llama)
    assert not model.training and lines == []
    assert {p.dtype for p in model.parameters()} == {
        torch.float32
    } and model.config.pad_token_id == tokenizer.pad_token_id
    assert {p.dtype for p in models.load(llama, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    assert models.load(llama, attn_implementation="eager")[0].config._attn_implementation == "eager"


def test_a_tokenizer_without_pad_or_template_is_given_both(tmp_path):
    bare = tiny_folder(tmp_path / "m", tokenizer=bytelevel_tokenizer(None, pad=None, eos="</s>"))
    model, tokenizer, lines = models.load(bare)
    assert any("no pad token" in line for line in lines) and any("ChatML" in line for line in lines)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("</s>")


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("gpt2", True)])
def test_new_tokens_get_rows_or_are_refused(tmp_path, kind, tied):
    tokenizer = bytelevel_tokenizer()
    name, size = tiny_folder(tmp_path / kind, kind, tokenizer), len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>", "<|newer|>"]})
    tokenizer.save_pretrained(name)
    model, _, lines = models.load(name, new_tokens=True)
    weight = model.get_input_embeddings().weight
    assert len(weight) == size + 2 and lines[-1].startswith("2 tokens of the tokenizer had no embedding")
    assert torch.isfinite(weight).all() and (weight[size:] - weight[:size].mean(0)).abs().max() < weight[:size].std()
    with pytest.raises(
        UserError, match=rf"has {size + 2} entries, the model only {size} embeddings.*LoRA freezes"
    ) as error:
        models.load(name)
    assert ("tied to the output head" in str(error.value)) == tied


# ---------------------------------------------------------------- adapters


def test_an_adapter_is_merged_onto_its_base(adapter):
    folder, expected = adapter
    merged = models.load(folder)[0]
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=0)
    assert {p.dtype for p in models.load(folder, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in merged.parameters()) and not hasattr(merged, "peft_config")


def test_an_adapter_brings_its_own_tokenizer(tmp_path, adapter):
    copy = shutil.copytree(adapter[0], tmp_path / "copy")
    bytelevel_tokenizer(LLAMA3).save_pretrained(copy)
    assert models.load(str(copy))[1].chat_template == LLAMA3
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink(missing_ok=True)
    assert models.load(str(copy))[1].chat_template == CHATML  # the base's


def test_other_kinds_of_adapters_are_refused(tmp_path, adapter):
    copy = shutil.copytree(adapter[0], tmp_path / "other")
    config = json.loads((copy / "adapter_config.json").read_text()) | {"peft_type": "IA3"}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="an adapter of type IA3; only LoRA is supported"):
        models.load(str(copy))


def test_a_hub_id_that_is_an_adapter_is_found_out(monkeypatch, adapter):
    """transformers would put the adapter in by itself, and a fresh one would then silently take its place."""
    import huggingface_hub
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "cached_file", lambda name, file, **more: f"{name}/{file}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, revision: adapter[0])
    ours = models.load("somebody/adapter")[0]
    torch.testing.assert_close(ours(IDS).logits, adapter[1], atol=1e-4, rtol=0)


def test_a_base_that_is_an_adapter_is_not_quantised(adapter):
    with pytest.raises(UserError, match=r"give its base as model.name and the adapter as model.adapter_path"):
        models.load(adapter[0], quantization="4bit")


def test_the_tokenizer_beside_an_adapter(tmp_path, llama):
    base = bytelevel_tokenizer()
    assert loading.tokenizer_beside(str(tmp_path), base) == (base, [])  # it brought none
    same = bytelevel_tokenizer()
    same.save_pretrained(tmp_path / "same")
    assert loading.tokenizer_beside(str(tmp_path / "same"), base)[1] == []
    bytelevel_tokenizer(LLAMA3).save_pretrained(tmp_path / "other")
    own, lines = loading.tokenizer_beside(str(tmp_path / "other"), base)
    assert own.chat_template == LLAMA3 and lines[-1].endswith("/other, which differs from the base's")
    same.add_tokens(["<|new|>"])
    same.save_pretrained(tmp_path / "more")
    with pytest.raises(UserError, match=rf"its tokenizer has {len(base) + 1} entries, that of the base {len(base)}"):
        loading.tokenizer_beside(str(tmp_path / "more"), base)


# ---------------------------------------------------------------- the policy of a run


def test_a_policy_with_a_fresh_adapter_and_without_one(tmp_path, llama):
    model, _, lines = models.load_policy(Model(name=llama, adapter="lora", lora={"rank": 4}), run_in(tmp_path))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained) and lines == []
    assert model.peft_config["default"].base_model_name_or_path == llama
    whole, _, lines = models.load_policy(
        Model(name=llama, lora={"rank": 4}, gradient_checkpointing=True), run_in(tmp_path)
    )
    assert all(p.requires_grad for p in whole.parameters()) and whole.is_gradient_checkpointing
    assert lines == ["model.lora is set, but model.adapter is none: every weight is trained"]


def test_an_adapter_on_an_adapter_takes_its_start_along(tmp_path, adapter):
    model, _, _ = models.load_policy(Model(name=adapter[0], adapter="lora"), run_in(tmp_path))
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path / "start")
    start = models.load(str(tmp_path / "start.part"))[0]
    torch.testing.assert_close(start(IDS).logits, adapter[1], atol=1e-4, rtol=0)


def test_the_folder_of_a_run_means_its_model(tmp_path, llama, adapter):
    shutil.copytree(llama, tmp_path / "run/model")
    shutil.copytree(llama, tmp_path / "killed/checkpoints/step_3/model")
    shutil.copytree(adapter[0], tmp_path / "lora/model")
    assert loading.find(str(tmp_path / "run")) == str(tmp_path / "run/model")
    assert loading.find(str(tmp_path / "run/model")) == str(tmp_path / "run/model")
    assert loading.find(str(tmp_path / "killed/checkpoints/step_3")) == str(
        tmp_path / "killed/checkpoints/step_3/model"
    )
    assert models.load(str(tmp_path / "run"))[0].config.hidden_size == 32
    base = loading.base_folder(Model(name=str(tmp_path / "run")), run_in(tmp_path), None, None)
    assert base == str(tmp_path / "run/model")  # where the adapter finds it again
    _, _, lines = models.load_policy(
        Model(name=llama, adapter="lora", adapter_path=str(tmp_path / "lora")), run_in(tmp_path)
    )
    assert lines[0].startswith(f"going on with the adapter {tmp_path}/lora/model: rank")
    with pytest.raises(
        UserError, match=r"killed': cannot be loaded: no model there .* last checkpoint is .*/step_3/model$"
    ):
        models.load(str(tmp_path / "killed"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no model there \(neither config.json nor adapter_config.json\)$"):
        models.load(str(tmp_path / "nothing"))


def test_a_tokenizer_that_is_missing_or_broken_is_said_to_be(tmp_path, llama):
    there = shutil.copytree(llama, tmp_path / "m")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (there / name).unlink()
    with pytest.raises(
        UserError,
        match=r"its tokenizer cannot be read: is tokenizer.json there, and whole\? \(ValueError: .* one of: \(1\)",
    ):
        models.load(str(there))
    (there / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"its tokenizer cannot be read: is tokenizer.json there, and whole\?"):
        models.load(str(there))


def test_weights_of_another_shape_are_named(tmp_path, llama):
    there = Path(shutil.copytree(llama, tmp_path / "m"))
    config = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(
        UserError, match=r"mlp.down_proj.weight is \[32, 64\] in the checkpoint, \[32, 48\] by config.json"
    ):
        models.load(str(there))


def test_a_saved_adapter_goes_on(tmp_path, llama, adapter):
    model, _, lines = models.load_policy(Model(name=llama, adapter="lora", adapter_path=adapter[0]), run_in(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=IDS).logits, adapter[1], atol=1e-6, rtol=0)
    assert lines[0].startswith("going on with the adapter ") and len(lines) == 1
    other = shutil.copytree(adapter[0], tmp_path / "other")
    bytelevel_tokenizer(LLAMA3).save_pretrained(other)
    _, tokenizer, lines = models.load_policy(
        Model(name=llama, adapter="lora", adapter_path=str(other)), run_in(tmp_path)
    )
    assert tokenizer.chat_template == LLAMA3 and lines[-1].endswith("which differs from the base's")


def test_new_tokens_are_for_runs_that_train_every_weight(tmp_path):
    tokenizer = bytelevel_tokenizer()
    name = tiny_folder(tmp_path / "m", tokenizer=tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(name)
    assert "1 tokens of the tokenizer had no embedding" in models.load_policy(Model(name=name), run_in(tmp_path))[2][-1]
    with pytest.raises(UserError, match="LoRA freezes the embeddings"):
        models.load_policy(Model(name=name, adapter="lora"), run_in(tmp_path))


# ---------------------------------------------------------------- random weights, and the rest


def test_from_scratch():
    config = yaml_config("pretrain_tiny").model
    model, tokenizer = models.from_scratch(config, "cpu")
    assert model.config.model_type == "llama" and model.config.hidden_size == 64
    assert model.config.vocab_size == len(tokenizer) and model.config.eos_token_id == tokenizer.eos_token_id
    # two layers of 4 · 64² + 3 · 64 · 160 + 2 · 64 each, a last norm of 64, and the embeddings, which are the head as well
    parameters = sum(p.numel() for p in model.parameters()) - 64 * len(tokenizer)
    assert parameters == 2 * (16_384 + 30_720 + 128) + 64 == 94_528


def test_from_scratch_with_a_tokenizer_of_ones_own(tmp_path):
    bytelevel_tokenizer(pad=None).save_pretrained(tmp_path)
    model, tokenizer = models.from_scratch(yaml_config("pretrain_tiny", model__tokenizer=str(tmp_path)).model, "cpu")
    assert tokenizer.pad_token == tokenizer.eos_token and model.config.vocab_size == len(tokenizer)


def test_the_longest_row():
    model = tiny_model(max_position_embeddings=256)
    assert [models.max_length(model, asked) for asked in (None, 100, 256)] == [256, 100, 256]
    with pytest.raises(UserError, match=r"data.max_length = 257, but the model reads at most 256 tokens"):
        models.max_length(model, 257)
    assert models.max_length(tiny_model(max_position_embeddings=4096), None) == 1024
    assert models.max_length(tiny_model("gpt2", n_positions=64), None) == 64


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_no_dropout_is_left_in_train_mode(tmp_path, kind):
    """Both configs say 0.1; the config that is saved keeps its own."""
    model = models.load(tiny_family(tmp_path / kind, kind))[0].train()
    models.no_dropout(model)
    torch.manual_seed(0)
    first, second = model(IDS).logits, model(IDS).logits
    assert model.training and torch.equal(first, second) and torch.equal(first, model.eval()(IDS).logits)
    assert 0.1 in (getattr(model.config, "dropout", None), getattr(model.config, "resid_pdrop", None))
