"""Trackers whose packages are missing are one line, before anything is loaded."""

import importlib.util

import pytest

from posttrain.config import trackers
from posttrain.errors import UserError


def test_a_missing_package_is_one_line(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("mlflow", "wandb") else real(name))
    with pytest.raises(UserError, match=r"^tracking.to: mlflow and wandb missing here: pip install mlflow wandb$"):
        trackers.refuse_missing(["mlflow", "wandb"])
