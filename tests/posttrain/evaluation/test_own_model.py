"""A model is tried before it is trained: healthy ones of every kind pass, and each fault is found by the check for it."""

import pytest
import torch
from kit import FAMILIES, bytelevel_tokenizer, tiny_family, tiny_folder
from transformers import MambaConfig, MambaForCausalLM

from posttrain import models
from posttrain.config import load
from posttrain.evaluation import own_model
from posttrain.models import lora

NAMES = [
    "loading",
    "conversations",
    "ends",
    "log-probs",
    "sampling",
    "packing",
    "scores",
    "gradients",
    "saving",
    "lora",
]


def examine(path: str, **keys) -> dict[str, own_model.Finding]:
    config = load(None, {"model.name": path} | {k.replace("__", "."): v for k, v in keys.items()}, method="sft")
    return {finding.name: finding for finding in own_model.examine(config)}


def problems(findings: dict) -> dict[str, str]:
    return {name: finding.problem for name, finding in findings.items() if finding.problem is not None}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_tested_architecture_passes(tmp_path, kind):
    findings = examine(tiny_family(tmp_path / "m", kind))
    assert list(findings) == NAMES and problems(findings) == {}
    assert own_model.verdict(list(findings.values())) == (
        True,
        "sft, distill, dpo, simpo, kto, reward, grpo, ppo can train this model",
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"model__dtype": "bfloat16"},
        {"model__quantization": "4bit", "model__adapter": "lora"},
        {"model__quantization": "8bit", "model__adapter": "lora"},
    ],
)
def test_in_fewer_bits(tmp_path, keys):
    findings = examine(tiny_folder(tmp_path / "m", "qwen2", hidden_size=64, num_attention_heads=4), **keys)
    assert problems(findings) == {}
    assert ("quantised" in findings["saving"].said) == ("model__quantization" in keys)


def test_a_model_that_keeps_a_state(tmp_path):
    """Mamba: can be trained, cannot be sampled from here, and transformers has no classifier of it."""
    tokenizer, path = bytelevel_tokenizer(), str(tmp_path / "m")
    shape = MambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    MambaForCausalLM(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    findings = examine(path)
    assert "keeps a state" in findings["sampling"].problem and "no sequence classifier" in findings["scores"].problem
    fine, verdict = own_model.verdict(list(findings.values()))
    assert not fine and verdict.startswith("sft, distill, dpo, simpo, kto can train this model; without ")
    assert "distill.on_policy (sampling)" in verdict and verdict.endswith(
        "; not reward (scores), grpo (sampling), ppo (sampling)"
    )


def test_what_cannot_be_loaded_ends_there(tmp_path):
    findings = examine(tiny_folder(tmp_path / "m", tokenizer=bytelevel_tokenizer("{{ broken")))
    assert list(findings) == NAMES[:2] and "template is broken" in findings["conversations"].problem
    findings = examine(str(tmp_path / "nothing"))
    assert list(findings) == NAMES[:1] and "no such folder" in findings["loading"].problem
    fine, verdict = own_model.verdict(list(findings.values()))
    assert not fine and verdict == "no loop can train this model"


def warmer(honest):
    """The sampler divides its logits by 1.1 where the trainer does not."""
    return lambda *a, **k: honest(*a, **k | {"temperature": 1.1})


def seen_by_the_padding(honest):
    def forward(self, batch, temperature=1.0):
        logps, entropy = honest(self, batch, temperature)
        return logps + 0.01 * (~batch.attention_mask).sum(1, keepdim=True) * batch.active, entropy

    return forward


def not_at_zero(honest):
    def add(*arguments):
        model = honest(*arguments)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
        return model

    return add


def without_its_ends(honest):
    def save(model, tokenizer, folder, *more):
        honest(model, tokenizer, folder, *more)
        if (folder / "generation_config.json").exists():
            (folder / "generation_config.json").write_text('{"eos_token_id": 5}')

    return save


def rounded(honest):
    return lambda model, tokenizer, folder, *more: honest(model.bfloat16(), tokenizer, folder, *more)


@pytest.mark.parametrize(
    ("place", "name", "fault", "check", "problem"),
    [
        (own_model, "sample", warmer, "sampling", "disagree"),
        (lora, "add", not_at_zero, "lora", "a fresh adapter changes log-probs"),
        (own_model, "save", without_its_ends, "saving", "it ends with 5 instead of [2]"),
        (own_model, "save", rounded, "saving", ""),
    ],
)
def test_each_fault_is_found(llama, monkeypatch, place, name, fault, check, problem):
    monkeypatch.setattr(place, name, fault(getattr(place, name)))
    found = problems(examine(llama))
    assert check in found and problem in found[check]


def test_log_probs_that_padding_reaches(llama, monkeypatch):
    honest = models.CompletionLogps.forward
    monkeypatch.setattr(models.CompletionLogps, "forward", seen_by_the_padding(honest))
    assert "are off from those of plain transformers" in problems(examine(llama))["log-probs"]


def test_rows_that_see_each_other(llama, monkeypatch):
    """Positions that do not restart: the model takes packed rows for one long one."""
    honest = own_model.collate_packed

    def run_on(packs, pad_id):
        batch = honest(packs, pad_id)
        return type(batch)(batch.input_ids, None, torch.arange(batch.input_ids.shape[1])[None], batch.completion_mask)

    monkeypatch.setattr(own_model, "collate_packed", run_on)
    assert "packed rows are off from the same rows alone" in problems(examine(llama))["packing"]


def test_a_gradient_that_is_not_finite(llama, monkeypatch):
    def explode(self, rows):
        logps, row_of = honest(self, rows)
        return logps * torch.where(torch.ones_like(logps, requires_grad=True) > 0, 1e30, 0.0) ** 2, row_of

    honest = own_model.Patient.logps
    monkeypatch.setattr(own_model.Patient, "logps", explode)
    assert "is not finite" in problems(examine(llama))["gradients"]
