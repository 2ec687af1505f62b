"""Attributes of modules that count heads or channels, and their values in the smaller model.

A module that splits a dimension into heads has an attribute with the number of heads, or with the
total width of all heads, or neither (``view(..., -1, self.head_dim)``). Whether an attribute is
such a number can only be guessed from its value. So there are several guesses, the most likely one
first, and the smaller model runs with each until it computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from sparseopt.structured.channel_groups import ChannelGroup
from sparseopt.structured.channel_masks import MAKERS

__all__ = ["Numbers", "guesses", "is_divided", "set_numbers"]

#: The attributes that change, with their new values, by path of the module.
Numbers = Mapping[str, Mapping[str, Any]]

#: Names of the width of one head.
_OF_ONE_HEAD: Final = re.compile(r"dim.*head|head.*(dim|size|width)|per_head")


def is_divided(group: ChannelGroup) -> bool:
    """Whether the model's code splits these channels: into heads, or halves of a gated layer."""
    return group.kind == "head" or any(
        place.index.shape[1] > 1 and place.role in MAKERS and group.kind == "neuron"
        for place in group.slices
    )


def guesses(
    model: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Mapping[int, Tensor]]
) -> Iterator[Numbers]:
    """Return guesses of the new values of attributes, by module, each guess once.

    Args:
        model: the full model.
        groups: its channels.
        kept: the positions that stay, for each dimension that becomes smaller, by tensor name.
    """
    changes: dict[str, dict[int, int]] = {}
    for group in groups:
        place = group.slices[0]
        if not is_divided(group) or place.dim not in kept.get(place.name, {}):
            continue
        stay = int(
            (place.index[:, :1] == kept[place.name][place.dim].cpu()).any(1).sum()  # (channels,)
        )
        for path in _modules_of(group):
            changes.setdefault(path, {}).update(_numbers(group, stay))
    found: list[dict[str, dict[str, Any]]] = []
    for may_change in _GUESSES:
        numbers = {
            path: _attributes(model.get_submodule(path), becomes, may_change)
            for path, becomes in changes.items()
        }
        numbers = {path: attributes for path, attributes in numbers.items() if attributes}
        if numbers not in found:
            found.append(numbers)
    return iter(found)


def set_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Give modules of ``model`` their new numbers."""
    for path, attributes in numbers.items():
        vars(model.get_submodule(path)).update(attributes)


_GUESSES: Final[tuple[Callable[[str], bool], ...]] = (
    lambda name: _OF_ONE_HEAD.search(name) is None,
    lambda _: True,
    lambda name: "head" in name and _OF_ONE_HEAD.search(name) is None,
    lambda _: False,
)


def _numbers(group: ChannelGroup, stay: int) -> dict[int, int]:
    """Return the new value of each number that counts channels of the group.

    These are the number of channels, the number of their positions in each tensor, and, if heads of
    queries share a head of keys, the number of heads of queries.
    """
    times = {place.index.shape[1] for place in group.slices}
    times |= {many // few for many in times for few in times if many % few == 0} | {1}
    return {group.channels * count: stay * count for count in times if stay < group.channels}


def _modules_of(group: ChannelGroup) -> list[str]:
    """Return the paths of modules whose code may contain the group's numbers.

    They are the modules around each layer, up to the one that has all of the group's layers.
    """
    layers = [place.name.split(".")[:-1] for place in group.slices]
    common = layers[0]
    for path in layers:
        shared = [own == other for own, other in zip(common, path, strict=False)]
        common = common[: shared.index(False) if False in shared else len(shared)]
    paths = {
        ".".join(path[:length])
        for path in layers
        for length in range(len(common), max(len(common), len(path) - 1) + 1)
    }
    return sorted(paths)


def _attributes(
    module: nn.Module, becomes: Mapping[int, int], may_change: Callable[[str], bool]
) -> dict[str, Any]:
    """Return the integer attributes of a module that ``becomes`` maps to new values."""
    if isinstance(module, nn.MultiheadAttention | nn.Linear):
        return {}
    return {
        name: becomes[value]
        for name, value in vars(module).items()
        if type(value) is int and value in becomes and may_change(name)
    }
