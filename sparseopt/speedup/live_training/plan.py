"""The plan of a speed-up: the implementation of each layer by shape of its input; plain data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, get_args

__all__ = ["DENSE", "Choices", "Implementation", "Plan", "check_plan", "choices_of", "nearest"]

#: ``"dense"``: torch, as without a speed-up. ``"live"``: the kernels, with live weights only. In a
#: model whose maps are in the kernels' layout, convolutions also have ``"full"``: the kernels, with
#: all weights; ``"product"``: a matrix product, for kernels of one pixel; ``"converted"``: torch,
#: on maps that are converted to its layout and back.
Implementation = Literal["dense", "live", "full", "product", "converted"]
DENSE: Final = "dense"

#: The implementation by layer name and shape of the input (``"128x16x32x32"``).
Plan = dict[str, dict[str, Implementation]]
#: The implementations of one layer by shape of the input.
Choices = dict[tuple[int, ...], Implementation]


def check_plan(plan: object, possible: Mapping[str, Collection[str]]) -> Plan:
    """Return a copy of a plan that the user passed.

    Args:
        plan: the plan.
        possible: the possible implementations of each layer of the model, by name.

    Raises:
        TypeError: if the plan is not a mapping of mappings.
        ValueError: if a layer, a shape or an implementation in it is not possible.
    """
    if not isinstance(plan, Mapping):
        raise TypeError(f"plan={plan!r} must be None or a mapping, such as handle.plan returns.")
    copied: Plan = {}
    for name, choices in plan.items():
        if name not in possible:
            raise ValueError(
                f"plan has the layer {name!r}, but the model has no convolution or linear layer of "
                "this name whose computation can be exchanged."
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
    """Return a layer's part of a plan with tuples as shapes."""
    return {tuple(map(int, shape.split("x"))): chosen for shape, chosen in plan.items()}


def nearest(choices: Choices, shape: tuple[int, ...]) -> Implementation:
    """Return the choice for the known shape whose number of entries is nearest to ``shape``'s.

    Example:
        >>> nearest({(128, 8): "live", (4, 8): "dense"}, (100, 8))
        'live'
    """
    size = math.log(max(1, math.prod(shape)))
    return choices[min(choices, key=lambda known: abs(math.log(max(1, math.prod(known))) - size))]
