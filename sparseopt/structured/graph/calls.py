"""Operator calls as rules see them, the labels that rules set, and the registry of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from sparseopt.structured.graph.atoms import (
    CoupledIndices,
    Labels,
    Positions,
    axes_of,
    is_grid,
    settle,
)
from sparseopt.structured.graph.tracing import Trace, arguments, operator_name, where

__all__ = [
    "Call",
    "Contraction",
    "Labelled",
    "Labelling",
    "Roles",
    "Rule",
    "find_rule",
    "rule_for",
]

#: The labels of a node: of one tensor, of several, or (empty labels) of something else.
Labelled = Labels | list[Labels]
#: The roles of dimensions of parameters and buffers in the order of their uses, by name and
#: dimension.
Roles = dict[tuple[str, int], list[str]]


@dataclass(frozen=True)
class Contraction:
    """A sum over channels: a channel's value is multiplied by weights and added up.

    Attributes:
        node: the operator call.
        atoms: the channels in the sum.
        operand: the node whose values are the channels, and the dimension of the channels.
        weight: the node that they are multiplied by, and the dimension of the channels there.
        padded: whether zeros are put around or between the channels' values before the sum.
    """

    node: Node
    atoms: Positions
    operand: tuple[Node, int]
    weight: tuple[Node, int]
    padded: bool


class Labelling:
    """The labels of all nodes of one trace, and the contractions in it."""

    def __init__(self, trace: Trace, atoms: CoupledIndices, roles: Roles) -> None:
        self.trace = trace
        self.atoms = atoms
        self.contractions: list[Contraction] = []
        self._roles = roles
        self._labels: dict[Node, Labelled] = {}

    def of(self, node: Node) -> Labels:
        """Return the labels of a node whose value is one tensor."""
        labels = self._labels[node]
        assert isinstance(labels, tuple)
        return labels

    def each(self, node: Node) -> list[Labels]:
        """Return the labels of all tensors of a node."""
        labels = self._labels[node]
        return labels if isinstance(labels, list) else [labels]

    def set(self, node: Node, labels: Labelled) -> None:
        """Set the labels of a node."""
        self._labels[node] = labels

    def note_role(self, node: Node | None, dim: int, role: str) -> None:
        """Record a role of a dimension of a parameter or buffer; a tied weight has several.

        If the node is a rearranged or split parameter, such as ``weight.t()``, the role belongs to
        the parameter's dimension that has the same atoms.
        """
        if node is None:
            return
        source = self.source(node)
        if source is node:
            self._roles.setdefault((self.trace.tensors[node], dim), []).append(role)
        elif source is not None:
            atoms = self.of(node)[dim]
            for place, own in enumerate(self.of(source)):
                if atoms is not None and own is not None and np.isin(atoms, own).all():
                    self._roles.setdefault((self.trace.tensors[source], place), []).append(role)

    def source(self, node: Node) -> Node | None:
        """Return the parameter or buffer that is the node, or the only input of its computation.

        The result is ``None`` if the node is computed from several tensors, or from another kind.
        """
        while node.op == "call_function" and len(node.all_input_nodes) == 1:
            (node,) = node.all_input_nodes
        return node if node in self.trace.tensors else None


class Call:
    """One operator call, with the questions and actions that rules need.

    Attributes:
        node: the call.
        arguments: its arguments by name.
        labelling: the labels of all earlier nodes.
        atoms: the atoms, which rules couple and block.
    """

    def __init__(self, node: Node, labelling: Labelling) -> None:
        self.node = node
        self.arguments = arguments(node)
        self.labelling = labelling
        self.atoms = labelling.atoms

    @property
    def name(self) -> str:
        """The operator's name, without the underscore of an in-place variant."""
        return operator_name(self.node).removesuffix("_")

    def labels(self, argument: Node) -> Labels:
        """Return the labels of a tensor argument; atoms along several dimensions are blocked."""
        labels = self.labelling.of(argument)
        for atoms in labels:
            if is_grid(atoms):
                self.block(atoms, f"applies {self.name!r} to them along several dimensions")
        return tuple(None if is_grid(atoms) else atoms for atoms in labels)

    def labels_and_grids(self, argument: Node, *, settled: Iterable[int] = ()) -> Labels:
        """Return the labels of a tensor argument, with its grids.

        Args:
            argument: the tensor.
            settled: dimensions along which grids are settled first: see :func:`settle`.
        """
        labels = self.labelling.of(argument)
        for dim in settled:
            labels = settle(labels, dim, self.atoms)
        self.labelling.set(argument, labels)
        return labels

    def keep_only(self, argument: Node, dim: int) -> Positions | None:
        """Settle a grid along all dimensions except ``dim``, and return the atoms along ``dim``."""
        atoms = self.labelling.of(argument)[dim]
        if atoms is not None and is_grid(atoms):
            others = [axis for axis in axes_of(atoms) if axis != dim]
            return self.labels_and_grids(argument, settled=others)[dim]
        return atoms

    def shape(self, argument: Node | None = None) -> tuple[int, ...]:
        """Return the shape of a tensor argument, or of the result."""
        return tuple((self.node if argument is None else argument).meta["val"].shape)

    def role(self, argument: Node | None, dim: int, role: str) -> None:
        """Record the role of a dimension of an argument, if that is a parameter or buffer."""
        self.labelling.note_role(argument, dim, role)

    def block(self, atoms: Positions | None, reason: str) -> None:
        """Block ``atoms`` because of this call; ``reason`` completes a sentence about the call."""
        self.atoms.block(atoms, self.reason(reason))

    def reason(self, reason: str) -> str:
        """Return the full sentence: the name of this call, and ``reason``."""
        return f"{where(self.node)} {reason}"

    def block_all(self, argument: Any, reason: str) -> None:
        """Block all positions of a tensor argument."""
        if isinstance(argument, Node):
            for atoms in self.labels(argument):
                self.block(atoms, reason)

    def line_up(self, arguments: Sequence[Node], dims: Iterable[int]) -> None:
        """Settle the grids of arguments that are combined along ``dims``, which are negative.

        Afterwards all arguments that have atoms along such a dimension have grids over the same
        dimensions. If one argument has no atoms there, the dimension can't become smaller in the
        others either. Settling one dimension may change another, so the loop goes on until nothing
        changes.
        """
        dims = list(dims)
        changed = True
        while changed:
            changed = False
            for dim in dims:
                size = max(self.size(argument, dim) for argument in arguments)
                meeting = [node for node in arguments if size > 1 and self.size(node, dim) == size]
                changed |= self._line_up_along(meeting, dim)

    def _line_up_along(self, meeting: Sequence[Node], dim: int) -> bool:
        """Settle the grids of the nodes in ``meeting`` if they lie along different dimensions.

        If all nodes have a grid that begins at ``dim``, the grids are reduced to ``dim``. Otherwise
        the grids are settled along ``dim``. Return whether labels have changed.
        """
        entries = [self.labelling.of(node)[dim] for node in meeting]
        axes = [
            None if entry is None else [dim] if entry.ndim == 1 else _from_the_end(entry)
            for entry in entries
        ]
        if len({str(dims) for dims in axes}) < 2:
            return False
        before = [self.labelling.of(node) for node in meeting]
        for argument, entry in zip(meeting, entries, strict=True):
            if entry is None or entry.ndim == 1:
                continue
            place = len(self.labelling.of(argument)) + dim
            if None in axes or place != axes_of(entry)[0]:
                # For a grid of heads and positions, the heads stay removable.
                self.labels_and_grids(argument, settled=[place])
            else:
                self.keep_only(argument, place)
        return any(
            own is not self.labelling.of(node) for own, node in zip(before, meeting, strict=True)
        )

    def size(self, argument: Node, dim: int) -> int:
        """Return a tensor argument's size along a negative dimension; 1 without this dimension."""
        shape = self.shape(argument)
        return shape[dim] if len(shape) >= -dim else 1

    def join(self, left: Positions | None, right: Positions | None) -> Positions | None:
        """Couple two dimensions of equal size and return their atoms.

        If only one of them has atoms, the size of the other is fixed, so the atoms are blocked.
        """
        if left is None or right is None:
            self.block(right if left is None else left, "combines them with a fixed dimension")
            return None
        self.atoms.couple(left.reshape(-1), right.reshape(-1))
        return left

    def join_all(self, atoms: Positions | None, *vectors: tuple[Node | None, str]) -> None:
        """Couple a dimension with vectors along it, if they are given, and record their roles."""
        for vector, role in vectors:
            if vector is not None:
                self.join(atoms, self.labels(vector)[0])
                self.role(vector, 0, role)


def _from_the_end(grid: Positions) -> list[int]:
    return [dim - grid.ndim for dim in axes_of(grid)]


Rule = Callable[[Call], Labelled]
_rules: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names and their in-place variants."""

    def register(rule: Rule) -> Rule:
        _rules.update(dict.fromkeys(names, rule))
        return rule

    return register


def find_rule(name: str) -> Rule | None:
    """Return the rule for an operator of this name, if there is one."""
    return _rules.get(name.removesuffix("_"))
