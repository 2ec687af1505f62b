"""What the harness calls a method, and what each is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a method trains.

    Args:
        optimizer: The method of ``SparseOptimizer``; None trains without it.
        length: Times as many epochs as the protocol says. Intervals of the learning rate and the
            end of mask updates are stretched alike.
        masks_from: The method whose final masks this one starts with, on the weights that that run
            began with; a run of it with the same init, density and seed has to be finished before.
        leaves_structure: Whether it drops whole channels or neurons. What is left of them is kept
            when a run ends, so that the smaller model can be timed.
    """

    optimizer: str | None = None
    length: int = 1
    masks_from: str | None = None
    leaves_structure: bool = False


# The order is that of tables and legends, and of colours: a new one goes to the end.
RECIPES = {
    "dense": Recipe(),
    "small-dense": Recipe(),
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
METHODS = tuple(RECIPES)
SPARSE_METHODS = tuple(name for name, recipe in RECIPES.items() if recipe.optimizer)
MASK_SOURCES = tuple({recipe.masks_from for recipe in RECIPES.values() if recipe.masks_from})
