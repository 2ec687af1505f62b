"""Wrapping an optimizer with the settings of most tests: a test names only what it changes."""

from typing import Any, Final

from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import build


def settings_with(**changes: Any) -> dict[str, Any]:
    """The usual settings, `changes` over them: with these, masks move at steps 5, 10, ..., 25."""
    return {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3, **changes}


SETTINGS: Final = settings_with()


def wrap(model: nn.Module, name: str = "SGD", **changes: Any) -> SparseOptimizer:
    """A sparse optimizer around torch's optimizer called `name`, with the usual settings."""
    return SparseOptimizer(build(name, model.parameters()), model, **settings_with(**changes))
