"""Attributes of modules that count heads or channels, and their values in the smaller model.

A module that splits a dimension into heads has an attribute with the number of heads, or with the
total width of all heads, or neither (``view(..., -1, self.head_dim)``). Whether an attribute is
such a number can't be read off its value, because other attributes may have the same value. So
the smaller model runs with new values for no attribute, for each single attribute, for each pair
and so on, until it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, combinations, islice
from typing import Any, Final

from torch import Tensor, nn

from sparseopt.speedup.compaction.consumers import Flags
from sparseopt.speedup.compaction.propagation_rules import is_norm
from sparseopt.structured.channel_groups import MAKERS, ChannelGroup, Structure
from sparseopt.structured.graph.atoms import is_grid
from sparseopt.structured.graph.tracing import arguments, where
from sparseopt.utils.errors import CompactionError

__all__ = [
    "Attribute",
    "Numbers",
    "attributes_to_change",
    "current_numbers",
    "is_divided",
    "new_numbers",
    "only",
    "set_numbers",
    "sizes_of_norms",
]

#: The attributes that change, with their new values, by path of the module.
Numbers = Mapping[str, Mapping[str, Any]]

#: A class of modules and the name of an attribute, which means the same in all its modules.
Attribute = tuple[type[nn.Module], str]

#: Number of sets of attributes that are tried: all sets of eight attributes.
_MOST_ATTEMPTS: Final = 256


def is_divided(group: ChannelGroup) -> bool:
    """Whether the model's code may split these channels: into heads, or halves of a gated layer.

    Groups of a convolution look like such halves.
    """
    return group.kind == "head" or any(
        place.index.shape[1] > 1 and place.role in MAKERS for place in group.slices
    )


def new_numbers(
    model: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Mapping[int, Tensor]]
) -> Numbers:
    """Return the integer attributes that may count channels of ``groups``, with new values.

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
    numbers = {
        path: _attributes(model.get_submodule(path), becomes) for path, becomes in changes.items()
    }
    return {path: attributes for path, attributes in numbers.items() if attributes}


def sizes_of_norms(structure: Structure, removed: Flags) -> Numbers:
    """Return the new numbers of channels of normalisations without parameters and statistics.

    Their number is an attribute only, and torch warns if it is another than the input's.

    Args:
        structure: the channels of the full model.
        removed: which classes of channels are removed.
    """
    labelling = structure.labellings[0]
    sizes = {}
    for node in labelling.trace.module.graph.nodes:
        if node.op != "call_function" or not is_norm(node):
            continue
        path = where(node).partition("@")[0]
        module = labelling.trace.modules.get(path)
        atoms = labelling.of(arguments(node)["input"])[1]
        if not isinstance(module, nn.modules.batchnorm._NormBase) or is_grid(atoms):
            continue
        if atoms is not None and not module.state_dict():
            sizes[path] = {"num_features": int((~removed[structure.classes[atoms]]).sum())}
    return sizes


def attributes_to_change(
    model: nn.Module, numbers: Numbers, check: Callable[[], None]
) -> frozenset[Attribute]:
    """Return the fewest attributes that need their new numbers, so that a check passes.

    Sets of attributes are tried, the smallest first. So an attribute that has the same value for
    another reason keeps it, even if the check can't tell. The model is left as it was.

    Args:
        model: a model that is smaller already, except for its attributes.
        numbers: the new numbers.
        check: raises :class:`CompactionError` if ``model`` does not compute the same.

    Raises:
        CompactionError: if no set passes: the error that the model raises as it is.
    """
    attributes = list(
        dict.fromkeys(
            (type(model.get_submodule(path)), name) for path, own in numbers.items() for name in own
        )
    )
    sets = chain.from_iterable(
        combinations(attributes, size) for size in range(len(attributes) + 1)
    )
    failure: CompactionError | None = None
    for chosen in islice(sets, _MOST_ATTEMPTS):
        with _with_numbers(model, only(model, numbers, chosen)):
            try:
                check()
            except CompactionError as error:
                failure = failure or error
            else:
                return frozenset(chosen)
    assert failure is not None
    raise failure


def only(model: nn.Module, numbers: Numbers, chosen: Collection[Attribute]) -> Numbers:
    """Return the numbers of the chosen attributes."""
    return {
        path: {
            name: value
            for name, value in own.items()
            if (type(model.get_submodule(path)), name) in chosen
        }
        for path, own in numbers.items()
    }


def current_numbers(model: nn.Module, numbers: Numbers) -> Numbers:
    """Return the values that the attributes in ``numbers`` have now."""
    return {
        path: {name: vars(model.get_submodule(path))[name] for name in own}
        for path, own in numbers.items()
    }


def set_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Give modules of ``model`` their new numbers."""
    for path, attributes in numbers.items():
        vars(model.get_submodule(path)).update(attributes)


@contextmanager
def _with_numbers(model: nn.Module, numbers: Numbers) -> Iterator[None]:
    before = current_numbers(model, numbers)
    set_numbers(model, numbers)
    try:
        yield
    finally:
        set_numbers(model, before)


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


def _attributes(module: nn.Module, becomes: Mapping[int, int]) -> dict[str, Any]:
    """Return the integer attributes of a module that ``becomes`` maps to new values."""
    if isinstance(module, nn.MultiheadAttention | nn.Linear):
        return {}
    return {
        name: becomes[value]
        for name, value in vars(module).items()
        if type(value) is int and value in becomes
    }
