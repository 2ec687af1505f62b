"""Every optimizer of this torch version, and the options that each of them takes.

Read from torch itself, so that an optimizer of the next release is tested the day it comes.
"""

import inspect
import itertools
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tests.support.nets import MatrixNet, SmallNet, make

ELEMENTWISE = (
    "ASGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
NEEDS_CLOSURE = frozenset({"LBFGS"})
REFUSED = frozenset({"SparseAdam"})

# Chosen so that a few dozen steps on a small net move every weight and every state tensor.
_OPTIONS: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.05, "t0": 5.0},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.02},
    "Adagrad": {"lr": 0.05, "initial_accumulator_value": 0.25},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "LBFGS": {"lr": 0.05, "max_iter": 4},
    "Muon": {"lr": 0.02},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.002, "momentum": 0.9},
    "Rprop": {"lr": 0.01, "step_sizes": (1e-6, 0.1)},
    "SGD": {"lr": 0.05, "momentum": 0.9},
}

# Maximising has no end, and long steps soon overflow.
_OPTIONS_UPHILL: dict[str, dict[str, Any]] = {"LBFGS": {"lr": 0.01}}

# Options that say how, and not what, is computed.
_IMPLEMENTATION = frozenset({"capturable", "differentiable", "foreach", "fused"})
_WEIGHT_DECAY = 0.05


def torch_optimizers() -> list[str]:
    """Names of all optimizer classes in `torch.optim` except those that raise an error."""
    return [
        name
        for name, value in sorted(vars(torch.optim).items())
        if inspect.isclass(value)
        and issubclass(value, Optimizer)
        and value is not Optimizer
        and name not in REFUSED
    ]


def build(name: str, params: Any, **changes: Any) -> Optimizer:
    """The optimizer called `name` with the options above, `changes` over them."""
    options = {**_OPTIONS.get(name, {})}
    if changes.get("maximize"):
        options.update(_OPTIONS_UPHILL.get(name, {}))
    return getattr(torch.optim, name)(params, **{**options, **changes})


def model_for(name: str, **how: Any) -> nn.Module:
    """A model that the optimizer takes: with convolutions where it can, else of matrices only."""
    model = make(SmallNet, **how)
    try:
        build(name, model.parameters())
    except ValueError:
        model = make(MatrixNet, **how)
        build(name, model.parameters())
    return model


def takes(name: str, option: str) -> bool:
    """Whether the optimizer has this option."""
    return option in inspect.signature(getattr(torch.optim, name)).parameters


def implementations(name: str) -> list[dict[str, Any]]:
    """The for-loop, foreach and fused implementations, where the optimizer has them."""
    found: list[dict[str, Any]] = [{}]
    if takes(name, "foreach"):
        found = [{"foreach": False}, {"foreach": True}]
    return [*found, {"fused": True}] if takes(name, "fused") else found


def switches(name: str) -> list[dict[str, Any]]:
    """No change, each option alone set to the opposite of its default, and all of them."""
    taken = inspect.signature(getattr(torch.optim, name)).parameters
    alone: list[dict[str, Any]] = [
        {key: not option.default}
        for key, option in taken.items()
        if isinstance(option.default, bool) and key not in _IMPLEMENTATION
    ]
    if "weight_decay" in taken:
        alone.append({"weight_decay": _WEIGHT_DECAY})
    together = {key: value for option in alone for key, value in option.items()}
    return [{}, *alone, together] if len(alone) > 1 else [{}, *alone]


def variants(name: str) -> list[dict[str, Any]]:
    """All switches in all implementations."""
    return [
        {**implementation, **switch}
        for implementation, switch in itertools.product(implementations(name), switches(name))
    ]


def elementwise_variants() -> list[tuple[str, dict[str, Any]]]:
    """All element-wise optimizers, in all implementations, with all switches."""
    return [(name, options) for name in ELEMENTWISE for options in variants(name)]


def fresh_value(optimizer: Optimizer, key: str, dtype: torch.dtype = torch.float64) -> float:
    """The initial value of the per-weight state `key` of a fresh parameter, in this dtype."""
    options = optimizer.param_groups[0]
    by_optimizer = {
        ("Rprop", "step_size"): float(options.get("lr", 0)),
        ("Adagrad", "sum"): float(options.get("initial_accumulator_value", 0)),
    }
    value = by_optimizer.get((type(optimizer).__name__, key), 0.0)
    return float(torch.tensor(value, dtype=dtype))
