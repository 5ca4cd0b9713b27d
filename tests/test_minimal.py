"""The one-page loops take the same steps as the real ones: three of them, the same losses and the same weights.

In float64, where two orders of the same sum differ by 1e-16: in float32 Adam turns the rounding of a gradient near 0 into
a step of its own (measured: weights up to 4e-5 apart after three steps of SFT). (The scalar head of PPO's critic is float32 whatever the model is: here it is not.)
"""

import re

import pytest
import torch
from torch import nn

from loops import dpo, grpo, ppo, sft
from minimal import dpo as minimal_dpo
from minimal import grpo as minimal_grpo
from minimal import ppo as minimal_ppo
from minimal import sft as minimal_sft
from posttrain import ROOT
from posttrain.config import load
from posttrain.models import loading, scalar
from posttrain.tiny import data

STEPS, ROWS, TOLERANCE = 3, 400, 1e-6
# What a page leaves out: the schedule; held-out rows; of the shipped DPO run the adapter, and the rate that goes with it.
PLAIN = {
    "training.max_steps": STEPS,
    "training.schedule": "constant",
    "training.warmup_steps": 0,
    "training.eval_every": None,
    "data.validation_split": 0.0,
    "data.max_samples": ROWS,
    "output.samples": 0,
}
LOOPS = {
    "sft": (sft, minimal_sft, {}),
    "dpo": (dpo, minimal_dpo, {"model.adapter": "none", "training.learning_rate": 2.5e-4}),
    # Norms compute in float32 whatever the model is, and add up a row in another order where it lies otherwise.
    "grpo": (grpo, minimal_grpo, {"model.name": "tiny-sft", "training.share_prompts": False}),
    "ppo": (ppo, minimal_ppo, {}),
}


def furthest(one: nn.Module, other: nn.Module) -> float:
    named = dict(other.named_parameters())
    return max((p - named[name]).abs().max().item() for name, p in one.named_parameters())


@pytest.mark.parametrize("method", LOOPS)
def test_three_steps_are_those_of_the_real_loop(method, tmp_path, monkeypatch):
    loop, page, own = LOOPS[method]
    load_model, as_scorer = loading.load, scalar.as_scorer

    def load_double(*names, **options):
        model, *rest = load_model(*names, **options)
        return model.double(), *rest

    monkeypatch.setattr(loading, "load", load_double)
    monkeypatch.setattr(scalar, "as_scorer", lambda causal: as_scorer(causal).double())
    monkeypatch.setattr(scalar, "per_token", lambda head, hidden: head(hidden).squeeze(-1))
    monkeypatch.setattr(page, "rows", lambda name: data.rows(name)[:ROWS])
    config = load(ROOT / f"configs/{method}_tiny.yaml", {"output.dir": str(tmp_path / "run")} | PLAIN | own)
    real = loop.train(config)
    policy, *_, losses = page.train(STEPS, torch.float64)

    assert losses == pytest.approx([row["loss"] for row in real.metrics], abs=TOLERANCE)
    assert furthest(real.model, policy) < TOLERANCE
    start = loading.load(config.model.name)[0]
    assert furthest(start, policy) > 1e-4  # and they have moved


def test_each_is_one_page():
    for path in sorted((ROOT / "minimal").glob("[a-z]*.py")):
        lines = path.read_text().splitlines()
        assert 60 <= len(lines) <= 90 and max(map(len, lines)) <= 120, path.name
        assert "accelerate" not in path.read_text().lower() and "posttrain.config" not in path.read_text()


@pytest.mark.parametrize("method", LOOPS)
def test_the_table_names_every_banner_of_the_real_loop(method):
    banners = re.findall(r"# -{4} (\d\. .+?) -+\n", (ROOT / f"loops/{method}.py").read_text(encoding="utf-8"))
    table = (ROOT / "docs/minimal.md").read_text(encoding="utf-8").partition(f"| [{method}]")[2]
    table = re.split(r"\n\| \[", table)[0]
    assert banners and re.findall(r"\| (\d\. .+?) \|", table) == sorted(set(banners), key=banners.index)
