"""One printed line per quantity: what `python -m losses.NAME` shows of its docstring's example."""

import math
from collections.abc import Iterable


def show(name: str, formula: str, value: float | Iterable[float]) -> None:
    values = [value] if isinstance(value, int | float) else list(value)
    print(f"{name:<20} {formula:<62} = {'  '.join(f'{v:.6f}' for v in values)}")


def agree(by_hand: float | Iterable[float], by_function: float | Iterable[float]) -> None:
    """The numbers in plain Python floats must be those of the function (1e-6)."""
    a, b = ([x] if isinstance(x, int | float) else list(x) for x in (by_hand, by_function))
    assert len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b, strict=True)), (a, b)
    print(f"{'':<20} the function says the same: {'  '.join(f'{v:.6f}' for v in b)}")
