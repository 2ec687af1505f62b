"""The optimizers of torch that everything else is wrapped around."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

_FAMILIES = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9),
    "adamw": partial(AdamW, lr=1e-3, weight_decay=0.01),
    "adam": partial(Adam, lr=1e-3),
}
# Torch chooses by the device if nothing is said.
_IMPLEMENTATIONS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
OPTIMIZERS = tuple(
    f"{family}-{implementation}" for family in _FAMILIES for implementation in _IMPLEMENTATIONS
)
#: What is measured unless the user says otherwise: one implementation of SGD, all of AdamW.
USUAL = ("sgd-for-loop", "adamw-for-loop", "adamw-foreach", "adamw-fused")


def make_inner(name: str, parameters: Sequence[Any]) -> Optimizer:
    """Make one of :data:`OPTIMIZERS` for parameters or groups of them."""
    family, _, implementation = name.partition("-")
    return _FAMILIES[family](parameters, **_IMPLEMENTATIONS[implementation])
