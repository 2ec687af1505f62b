"""``find_channel_groups``: the channels of a model, and their positions in its tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.structured.graph.atoms import CoupledIndices, Positions
from sparseopt.structured.graph.calls import Labelling, Roles
from sparseopt.structured.graph.einsum import with_products
from sparseopt.structured.graph.labelling import label
from sparseopt.structured.graph.tracing import trace
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.example_inputs import as_arguments
from sparseopt.utils.wrappers import unwrapped

__all__ = [
    "KINDS",
    "MAKERS",
    "ChannelGroup",
    "ChannelSlice",
    "Kinds",
    "Structure",
    "analyse",
    "find_channel_groups",
]

#: Channels of convolutions, hidden neurons of linear layers, heads of attention.
KINDS: Final = ("channel", "neuron", "head")
#: Roles of weights that produce a channel's values.
MAKERS: Final = ("producer", "grouped", "tied")
#: Some kinds, or a share of live channels for each of some kinds.
Kinds = Sequence[str] | Mapping[str, float] | None


@dataclass(frozen=True)
class ChannelSlice:
    """The part of one parameter or buffer that belongs to each channel of a group.

    Attributes:
        name: the parameter's or buffer's name.
        dim: the dimension along which the channels lie.
        index: the positions along ``dim`` of each channel, int64, ``(channels, positions)``. After
            a flattening, or in a grouped convolution, a channel has several positions.
        role: the use of the dimension: ``"producer"`` (a filter, a neuron), ``"bias"``,
            ``"consumer"`` (weights that the channel is multiplied by), ``"tied"`` (weights that do
            both, such as an embedding that is also the output projection), ``"grouped"`` (filters
            of a grouped or depthwise convolution, which read channels and produce channels of the
            same group), ``"scale"``, ``"shift"``, ``"mean"``, ``"variance"`` (of a normalisation)
            or ``"elementwise"``.

    Example:
        >>> import torch
        >>> from sparseopt import find_channel_groups
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> _, neurons, _ = find_channel_groups(model, torch.zeros(2, 4))
        >>> [(part.name, part.dim, part.role) for part in neurons.slices]
        [('0.weight', 0, 'producer'), ('0.bias', 0, 'bias'), ('2.weight', 1, 'consumer')]
    """

    name: str
    dim: int
    index: Tensor
    role: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one kind. Each can be removed independently, with everything that belongs to it.

    Layers whose results are added share their channels, so they are in one group.

    Attributes:
        name: the name of the first producer.
        channels: the number of channels.
        slices: the parts of tensors that belong to the channels, in the model's order.
        blocked: the reason why no channel can be removed, or ``None`` if all can.
        kind: ``"channel"`` (of convolutions), ``"neuron"`` (of linear layers) or ``"head"`` (of
            attention; with grouped queries, a head of keys and values with all heads of queries
            that share it).

    Example:
        >>> import torch
        >>> from sparseopt import find_channel_groups
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> inputs, neurons, outputs = find_channel_groups(model, torch.zeros(2, 4))
        >>> neurons.name, neurons.channels, neurons.blocked
        ('0.weight', 3, None)
        >>> outputs.name, outputs.channels, outputs.blocked
        ('2.weight', 2, 'they are outputs of the model')
    """

    name: str
    channels: int
    slices: tuple[ChannelSlice, ...]
    blocked: str | None
    kind: str = "channel"

    def slices_of(self, *roles: str) -> list[ChannelSlice]:
        """Return the slices that have one of these roles."""
        return [part for part in self.slices if part.role in roles]


@dataclass(frozen=True)
class Structure:
    """The channels of a model, as its graphs in training and in evaluation mode show them.

    Attributes:
        groups: the channel groups.
        roots: for each group, the class of each of its channels, in their order.
        by_axis: the class of each position along a dimension, by tensor name and dimension.
        classes: the class of every atom; a class has the number of its smallest atom.
        reasons: the reason why a class cannot be removed, by its number.
        labellings: the labelled graphs of training and of evaluation mode.
        divided: classes that the model's code splits or reshapes, such as heads.
    """

    groups: list[ChannelGroup]
    roots: list[list[int]]
    by_axis: dict[tuple[str, int], list[int]]
    classes: Positions
    reasons: dict[int, str]
    labellings: tuple[Labelling, Labelling]
    divided: set[int]


def find_channel_groups(
    model: nn.Module, example_inputs: Any = None, *more_inputs: Any, **keywords: Any
) -> list[ChannelGroup]:
    """Find the channels, neurons and heads of a model, and everything that belongs to each.

    The model is traced by :func:`torch.export.export`, in training and in evaluation mode, and left
    as it was. Additions and all other element-wise operators couple channels. Concatenations keep
    them separate. In a linear layer after a flattening, each channel has several columns. An
    operator that is not known to treat channels independently blocks all channels that it reads;
    the group's ``blocked`` has the reason and the name of the module.

    Args:
        model: the model. Wrappers of data parallel training and of ``torch.compile`` are removed.
        example_inputs: an input of the model: one value, a tuple of positional arguments, a mapping
            of keyword arguments, or a pair of both. Two samples suffice. Only shapes matter.
        more_inputs: deprecated. Put further positional arguments into the tuple ``example_inputs``.
        keywords: deprecated. Put keyword arguments into the mapping ``example_inputs``.

    Returns:
        The groups, in the order of their first parameters.

    Raises:
        UntraceableModelError: if ``torch.export`` refuses the model.

    Example:
        >>> import torch
        >>> from sparseopt.structured import find_channel_groups
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Flatten(), torch.nn.Linear(8 * 4, 10))
        >>> _, group, *_ = find_channel_groups(model, torch.randn(2, 3, 4, 4))
        >>> group.name, group.channels, group.blocked
        ('0.weight', 8, None)
        >>> [(part.name, part.dim, part.role, tuple(part.index.shape)) for part in group.slices]
        ... # doctest: +NORMALIZE_WHITESPACE
        [('0.weight', 0, 'producer', (8, 1)), ('1.weight', 0, 'scale', (8, 1)),
         ('1.bias', 0, 'shift', (8, 1)), ('1.running_mean', 0, 'mean', (8, 1)),
         ('1.running_var', 0, 'variance', (8, 1)), ('4.weight', 1, 'consumer', (8, 4))]
    """
    args, kwargs = as_arguments(example_inputs)
    if more_inputs or keywords:
        warn_old_spelling(
            "find_channel_groups(model, input, input, name=input)",
            "find_channel_groups(model, example_inputs=((input, input), {'name': input}))",
        )
        given = (example_inputs, *more_inputs)
        args, kwargs = (() if example_inputs is None and not more_inputs else given), keywords
    return analyse(model, args, kwargs).groups


def analyse(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Structure:
    """Return everything that is known about a model's channels; see :func:`find_channel_groups`."""
    model = unwrapped(model)
    atoms = CoupledIndices()
    uses: Roles = {}
    training, evaluation = (
        label(with_products(trace(model, args, kwargs, training=training)), atoms, uses)
        for training in (True, False)
    )
    roles = {axis: _role(noted) for axis, noted in uses.items()}
    for axis in atoms.axes:
        if (axis.name, axis.dim) not in roles:
            atoms.block(axis.atoms, f"the model uses {axis.name} in a way that is not known")
    classes, reasons = atoms.classes(), atoms.reasons()
    by_axis = {
        (axis.name, axis.dim): classes[axis.atoms].tolist()
        for axis in atoms.axes
        if (axis.name, axis.dim) in roles
    }
    members = _members(by_axis, roles)
    together = _alike(members, reasons)
    heads = atoms.heads()
    groups = []
    for group_of in together:
        group = _group([members[root] for root in group_of], roles, reasons.get(group_of[0]))
        groups.append(replace(group, kind=_kind(group, atoms, is_head=group_of[0] in heads)))
    divided = atoms.divided()
    return Structure(groups, together, by_axis, classes, reasons, (training, evaluation), divided)


_Members = dict[tuple[str, int], list[int]]


def _members(
    by_axis: Mapping[tuple[str, int], list[int]], roles: Iterable[tuple[str, int]]
) -> dict[int, _Members]:
    """Return the positions of each class, by dimension of a tensor, in the model's order."""
    members: dict[int, _Members] = defaultdict(lambda: defaultdict(list))
    for axis in roles:
        for position, root in enumerate(by_axis.get(axis, ())):
            members[root][axis].append(position)
    return members


def _alike(members: Mapping[int, _Members], reasons: Mapping[int, str]) -> list[list[int]]:
    """Group the classes that have equally many positions along the same dimensions of tensors.

    A group is either blocked as a whole, for one reason, or not at all.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for root, positions in members.items():
        shape = tuple((key, len(found)) for key, found in positions.items())
        alike[shape, reasons.get(root)].append(root)
    return list(alike.values())


def _role(noted: Sequence[str]) -> str:
    """Return the role of a dimension: its first one, unless it both makes and reads channels."""
    makes_and_reads = "consumer" in noted and ("producer" in noted or "grouped" in noted)
    return "tied" if makes_and_reads else noted[0]


def _kind(group: ChannelGroup, atoms: CoupledIndices, *, is_head: bool) -> str:
    if is_head:
        return "head"
    ranks = [atoms.rank(place.name) for place in group.slices_of(*MAKERS)]
    return "channel" if max(ranks, default=0) > 2 else "neuron"


def _group(
    members: Sequence[_Members], roles: Mapping[tuple[str, int], str], blocked: str | None
) -> ChannelGroup:
    """Return the group of classes that have equally many positions in the same dimensions."""
    slices = tuple(
        ChannelSlice(
            name,
            dim,
            torch.tensor([of[name, dim] for of in members], device="cpu"),
            roles[name, dim],
        )
        for name, dim in members[0]
    )
    named = [part.name for part in slices if part.role in MAKERS]
    return ChannelGroup((named or [slices[0].name])[0], len(members), slices, blocked)
