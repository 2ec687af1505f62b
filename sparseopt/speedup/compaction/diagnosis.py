"""Makes the report of a compaction from channels, masks and uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from sparseopt.speedup.compaction.consumers import Flags, Use
from sparseopt.speedup.compaction.propagation_rules import factors, is_sum
from sparseopt.speedup.compaction.removal import Removal
from sparseopt.speedup.compaction.report import CompactionReport, LayerSizes, Remaining
from sparseopt.structured.channel_groups import MAKERS, Structure
from sparseopt.structured.graph.calls import Labelling
from sparseopt.structured.graph.tracing import operator_name

__all__ = ["make_report"]

Axis = tuple[str, int]
_MAKES = frozenset(MAKERS)
_READS = frozenset({"consumer", "tied"})


def make_report(
    structure: Structure,
    uses: Sequence[Use],
    removal: Removal,
    live: Mapping[str, Tensor],
    model: nn.Module,
) -> CompactionReport:
    """Return what is removed from ``model``, what is not, and why."""
    return _Reporter(structure, uses, removal, live).report(model)


class _Reporter:
    def __init__(
        self,
        structure: Structure,
        uses: Sequence[Use],
        removal: Removal,
        live: Mapping[str, Tensor],
    ) -> None:
        self._structure = structure
        self._uses = uses
        self._removal = removal
        self._masked = list(live)
        self._roles = {
            (part.name, part.dim): part.role for group in structure.groups for part in group.slices
        }
        self._live = {
            axis: _alive(live[axis[0]], axis[1]) if axis[0] in live else None
            for axis, role in self._roles.items()
            if role in _MAKES | _READS
        }
        self._dropped_by_masks = self._classes_dropped()
        self._makers = self._live_makers()
        self._stuck: dict[int, tuple[Use, int]] = {}
        for use in uses:
            for position in np.flatnonzero(~use.harmless(removal.removed)).tolist():
                self._stuck.setdefault(int(use.roots[position]), (use, position))

    def report(self, model: nn.Module) -> CompactionReport:
        parameters = dict(model.named_parameters())
        times = _multiplications(self._structure.labellings[1])
        layers = tuple(
            self._sizes(name, tuple(parameters[name].shape), count)
            for name, count in times.items()
            if name in parameters
        )
        before = sum(parameter.numel() for parameter in parameters.values())
        after = sum(
            math.prod(self._shape_after(name, tuple(parameter.shape)))
            for name, parameter in parameters.items()
        )
        known = {name for name, _ in self._roles}.union(times)
        left = tuple(name for name in self._masked if name not in known)
        return CompactionReport(layers, tuple(self._remaining()), before, after, left)

    def _classes_dropped(self) -> Flags:
        """Return the classes that no live filter produces, or that no live column reads."""
        size = len(self._structure.classes)
        made, read, has_makers, has_readers = (np.zeros(size, dtype=np.bool_) for _ in range(4))
        for axis, alive in self._live.items():
            roots = np.array(self._structure.by_axis[axis])
            for kind, has, found in ((_MAKES, has_makers, made), (_READS, has_readers, read)):
                if self._roles[axis] in kind:
                    has[roots] = True
                    found[roots if alive is None else roots[alive]] = True
        dropped: Flags = (has_makers & ~made) | (has_readers & ~read)
        return dropped

    def _sizes(self, name: str, shape: tuple[int, ...], count: int) -> LayerSizes:
        possible = list(shape)
        for dim in range(len(shape)):
            if (name, dim) in self._live:
                gone = self._could_go((name, dim))
                possible[dim] = max(1, shape[dim] - int(gone.sum()))
        return LayerSizes(name, shape, self._shape_after(name, shape), tuple(possible), count)

    def _could_go(self, axis: Axis) -> Flags:
        roots = self._structure.by_axis[axis]
        alive = self._live[axis]
        gone: Flags = self._dropped_by_masks[roots] | self._removal.removed[roots]
        return gone if alive is None else gone | ~alive

    def _shape_after(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            size - int(self._removal.removed[self._structure.by_axis.get((name, dim), [])].sum())
            for dim, size in enumerate(shape)
        )

    def _remaining(self) -> list[Remaining]:
        """Return the dropped channels that stay in the model, each with one reason."""
        found: dict[tuple[str, int, str], list[int]] = defaultdict(list)
        for (name, dim), alive in self._live.items():
            if alive is None:
                continue
            roots = self._structure.by_axis[name, dim]
            for position in np.flatnonzero(~alive).tolist():
                if not self._removal.removed[roots[position]]:
                    found[name, dim, self._reason(roots[position])].append(position)
        return [
            Remaining(name, dim, tuple(positions), reason)
            for (name, dim, reason), positions in found.items()
        ]

    def _reason(self, root: int) -> str:
        if root in self._structure.reasons:
            return self._structure.reasons[root]
        if root in self._removal.pinned:
            return "a layer cannot be empty"
        if root in self._stuck:
            return self._reason_at(*self._stuck[root], root)
        return "it belongs to a channel that keeps a layer from being empty"

    def _reason_at(self, use: Use, position: int, root: int) -> str:
        """Return why a use keeps a channel: it varies, or no bias can take its constant."""
        if not use.known[position]:
            makers = self._makers.get(root)
            if makers:
                return f"{use.name} reads it, and it is still made by {', '.join(makers)}"
            return f"no live filter makes it, but it is not one constant where {use.name} reads it"
        if not use.agrees[position]:
            return (
                f"its constant differs between training and evaluation where {use.name} reads it: "
                "running statistics have not settled"
            )
        constant = f"{use.name} reads it as the constant {use.values[position]:.3g}"
        if use.padded:
            return f"{constant}, and next to its padding no bias can stand in for that"
        return f"{constant}, and has no bias of its own to put it in"

    def _live_makers(self) -> dict[int, list[str]]:
        """Return for each class the weights that have a live filter for it."""
        makers: dict[int, dict[str, None]] = defaultdict(dict)
        for axis, alive in self._live.items():
            if self._roles[axis] in _MAKES:
                roots = np.array(self._structure.by_axis[axis])
                for root in roots if alive is None else roots[alive]:
                    makers[int(root)][axis[0]] = None
        return {root: list(names) for root, names in makers.items()}


def _alive(mask: Tensor, dim: int) -> Flags:
    alive: Flags = mask.movedim(dim, 0).flatten(1).any(1).cpu().numpy()
    return alive


def _multiplications(labelling: Labelling) -> dict[str, int]:
    """Return how often each entry of a weight is multiplied in one run, by the weight's name.

    Entries of parts that are used unequally often, such as the three parts of the weight of
    cross-attention, have their mean.
    """
    found: dict[str, float] = defaultdict(float)
    for node in labelling.trace.module.graph.nodes:
        if node.op == "call_function" and is_sum(node):
            sources = map(labelling.source, reversed(factors(node)[:2]))
            weight = next((source for source in sources if source is not None), None)
            if weight is not None:
                name = labelling.trace.tensors[weight]
                found[name] += _products(node) / weight.meta["val"].numel()
    return {name: round(times) for name, times in found.items()}


def _products(node: Node) -> int:
    """Return how many products a call sums."""
    left, right = (factor.meta["val"] for factor in factors(node)[:2])
    result = node.meta["val"]
    name = operator_name(node)
    if name.startswith("conv_transpose"):
        return int(left.numel() * right[0].numel())
    if name.startswith("conv"):
        return int(result.numel() * right[0].numel())
    return int(result.numel() * left.shape[-1])
