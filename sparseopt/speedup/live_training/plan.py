"""The plan of a speed-up: for each layer and shape of its input, what computes it; plain data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, get_args

__all__ = ["DENSE", "Choices", "Implementation", "Plan", "check_plan", "choices_of", "nearest"]

#: ``"dense"``: torch, as without a speed-up. ``"live"``: the kernels, with live weights only. In a
#: model whose maps are in the kernels' layout also, of a convolution, ``"full"``: the kernels, with
#: all weights; ``"product"``: a product with a matrix, of kernels of one pixel; ``"converted"``:
#: torch, on maps that are converted there and back.
Implementation = Literal["dense", "live", "full", "product", "converted"]
DENSE: Final = "dense"

#: By layer name and shape of the input (``"128x16x32x32"``) the implementation.
Plan = dict[str, dict[str, Implementation]]
#: The same for one layer, by shape.
Choices = dict[tuple[int, ...], Implementation]


def check_plan(plan: object, possible: Mapping[str, Collection[str]]) -> Plan:
    """Return a copy of a plan that the user passed.

    Args:
        plan: the plan.
        possible: which implementations each layer of the model has, by name.

    Raises:
        TypeError: if it is no mapping of mappings.
        ValueError: if it has a layer, a shape or an implementation that there is not.
    """
    if not isinstance(plan, Mapping):
        raise TypeError(f"plan={plan!r} must be what handle.plan was, a mapping, or None.")
    copied: Plan = {}
    for name, choices in plan.items():
        if name not in possible:
            raise ValueError(
                f"plan has the layer {name!r}, which is no convolution or linear layer of the "
                "model whose computation can be exchanged."
            )
        if not isinstance(choices, Mapping):
            raise TypeError(f"plan[{name!r}]={choices!r} must map shapes to implementations.")
        copied[name] = {
            shape: _checked(name, shape, chosen, possible[name])
            for shape, chosen in choices.items()
        }
    return copied


def _checked(name: str, shape: object, chosen: Any, possible: Collection[str]) -> Implementation:
    """Return a choice of a plan that a user passed; raise if its shape or its name is wrong."""
    if not isinstance(shape, str) or not all(part.isdecimal() for part in shape.split("x")):
        raise ValueError(f"plan[{name!r}] has the shape {shape!r}; write it as '128x16x32x32'.")
    if chosen not in get_args(Implementation) or chosen not in possible:
        raise ValueError(
            f"plan[{name!r}][{shape!r}]={chosen!r} must be one of "
            f"{', '.join(map(repr, sorted(possible)))}."
        )
    implementation: Implementation = chosen
    return implementation


def choices_of(plan: Mapping[str, Implementation]) -> Choices:
    """Return a layer's part of a plan by shapes that are tuples."""
    return {tuple(map(int, shape.split("x"))): chosen for shape, chosen in plan.items()}


def nearest(choices: Choices, shape: tuple[int, ...]) -> Implementation:
    """Return the choice for the shape that has the number of entries nearest to ``shape``'s.

    Example:
        >>> nearest({(128, 8): "live", (4, 8): "dense"}, (100, 8))
        'live'
    """
    size = math.log(max(1, math.prod(shape)))
    return choices[min(choices, key=lambda known: abs(math.log(max(1, math.prod(known))) - size))]
