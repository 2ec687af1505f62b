"""What the state of a weight is before its first gradient, optimizer by optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Adagrad, Optimizer, Rprop

__all__ = ["fresh_value"]


def fresh_value(optimizer: Optimizer, group: dict[str, Any], key: str) -> float:
    """Return what ``optimizer`` would fill the state ``key`` of a fresh parameter with.

    Moments start at zero. Rprop's step size starts at the learning rate and Adagrad's accumulator
    at ``initial_accumulator_value``: zeroed, a grown weight would never move, or leap.
    """
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0
