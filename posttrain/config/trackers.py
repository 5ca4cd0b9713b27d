"""Which experiment trackers there are, and whether their packages are: asked before torch is imported."""

import importlib.util

from posttrain.errors import UserError

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def refuse_missing(names: list[str]) -> None:
    missing = [PACKAGES[name] for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise UserError(f"tracking.to: {' and '.join(missing)} missing here: pip install {' '.join(missing)}")
