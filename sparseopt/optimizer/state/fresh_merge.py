"""What the state of a weight is before its first gradient, optimizer by optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Adagrad, Optimizer, Rprop

__all__ = ["fresh_value", "is_known"]


def is_known(optimizer: Optimizer) -> bool:
    """Whether :func:`fresh_value` is right for ``optimizer``: it is one of torch's own."""
    return type(optimizer).__module__.partition(".")[0] == "torch"


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
