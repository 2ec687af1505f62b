"""The names of methods and inits in this benchmark, and their meaning.

A method or an init of your own is trained beside the others when a module that ``--import`` names
registers it, with ``sparseopt.register_method`` or ``sparseopt.register_distribution``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import benchmarks.cifar.variants  # noqa: F401 - it registers methods
from benchmarks.cifar.settings import ProtocolError, meant
from sparseopt import Method, available_distributions, available_methods
from sparseopt.methods import get_method

DENSE, SMALL_DENSE = "dense", "small-dense"


@dataclass(frozen=True)
class Recipe:
    """How a method trains.

    Args:
        optimizer: The method of ``SparseOptimizer``; None trains without it.
        length: The factor on the protocol's number of epochs. Intervals of the learning rate and
            the end of mask updates are stretched by it too.
        masks_from: The method whose final masks this method starts with, on the initial weights of
            that run. A run of it with the same init, density and seed has to be finished before.
        leaves_structure: Whether the method drops whole channels or neurons. The structure of the
            smaller model is kept when a run ends, so that it can be timed.
    """

    optimizer: str | None = None
    length: int = 1
    masks_from: str | None = None
    leaves_structure: bool = False


# Tables, legends and colours have this order, so add a new method at the end.
RECIPES = {
    DENSE: Recipe(),
    SMALL_DENSE: Recipe(),
    "static": Recipe("static"),
    "set": Recipe("set"),
    "rigl": Recipe("rigl"),
    "rigl-2x": Recipe("rigl", length=2),
    "rigl-3x": Recipe("rigl", length=3),
    "snfs": Recipe("snfs"),
    "rigl-sg": Recipe("rigl-sg"),
    "rigl-sm": Recipe("rigl-sm"),
    "rigl-reinit": Recipe("rigl", masks_from="rigl-sm"),
    "pruning": Recipe("pruning"),
    "lottery": Recipe("static", masks_from="pruning"),
    "granet": Recipe("granet"),
    "mest": Recipe("mest"),
    "rigl-struct": Recipe("rigl-struct", leaves_structure=True),
    "srigl": Recipe("srigl", leaves_structure=True),
}


def recipe_of(method: str) -> Recipe:
    """The recipe of a method; without one, the registered method of this name trains."""
    if method in RECIPES:
        return RECIPES[method]
    if method not in available_methods():
        known = [*RECIPES, *(name for name in available_methods() if name not in RECIPES)]
        raise ProtocolError(f"{method!r} is not a method; {meant(method, known)}")
    return Recipe(method)


def check_method(method: str) -> str:
    """Return the name if there is such a method, else raise."""
    recipe_of(method)
    return method


def check_init(init: str) -> str:
    """Return the name if there is such an init, else raise."""
    if init not in available_distributions():
        raise ProtocolError(f"{init!r} is not an init; {meant(init, available_distributions())}")
    return init


def method_with(method: str, settings: Mapping[str, Any]) -> str | Method:
    """The value of ``method=`` of ``SparseOptimizer`` for a sparse method with settings."""
    name = recipe_of(method).optimizer
    if name is None:
        raise ProtocolError(f"{method!r} trains without a sparse method and takes no settings")
    if not settings:
        return name
    plain = get_method(name)
    known = [field.name for field in dataclasses.fields(plain)]
    for setting in settings:
        if setting not in known:
            raise ProtocolError(
                f"{setting!r} is not a setting of {method!r}; {meant(setting, known)}"
            )
    try:
        return dataclasses.replace(plain, **settings)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"settings {dict(settings)} of {method!r}: {error}") from None
