"""The uses of channels: places where channels are summed, with the constants known there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseopt.speedup.compaction.constant_propagation import Constants
from sparseopt.structured.channel_groups import Structure
from sparseopt.structured.graph.atoms import Positions
from sparseopt.structured.graph.calls import Contraction, Labelling
from sparseopt.structured.graph.tracing import where

__all__ = ["Flags", "Use", "uses_of"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Use:
    """One place where channels are summed, in training and in evaluation mode.

    Attributes:
        name: path of the module that computes the sum.
        weight: name of the weight in the sum, or ``None`` if it is not a parameter.
        roots: the class of each position in the sum, ``(positions,)``.
        rows: the class of each result, ``(results,)``; -1 for a result that is not a channel.
        counts: where the weight is live, ``(positions, results)``.
        known: whether each channel is constant, in both modes.
        values: its constant, ``(positions,)``.
        agrees: whether the constant is the same in both modes.
        padded: whether zeros are put around the channels' values before the sum.
        has_bias: whether the module that computes the sum has a bias or can get one.
    """

    name: str
    weight: str | None
    roots: Positions
    rows: Positions
    counts: Flags
    known: Flags
    values: NDArray[np.float64]
    agrees: Flags
    padded: bool
    has_bias: bool

    def dead(self, removed: Flags) -> Flags:
        """Return which positions have no live weight to any result that stays."""
        stays = np.append(~removed, True)[self.rows]
        dead: Flags = np.logical_not(self.counts[:, stays].any(1))
        return dead

    def harmless(self, removed: Flags) -> Flags:
        """Return which positions can be removed without changing any result that stays.

        These are dead positions, and constants that are zero or that a bias can take.
        """
        foldable = self.has_bias and not self.padded
        fits = self.known & self.agrees & ((self.values == 0) | foldable)
        harmless: Flags = np.logical_or(self.dead(removed), fits)
        return harmless


def uses_of(
    structure: Structure,
    constants: Sequence[Sequence[Constants]],
    live: Mapping[str, Tensor],
    model: nn.Module,
) -> list[Use]:
    """Return every use of channels; uses in training and in evaluation mode are paired by weight.

    Args:
        structure: the model's channels.
        constants: the constants at each contraction, for each labelling of ``structure``.
        live: masks by parameter name.
        model: the model, whose modules show where a bias is possible.
    """
    paired: dict[tuple[str, int], list[tuple[Labelling, Contraction, Constants]]] = {}
    for labelling, known in zip(structure.labellings, constants, strict=True):
        seen: Counter[str] = Counter()
        for contraction, constant in zip(labelling.contractions, known, strict=True):
            weight = labelling.trace.tensors.get(contraction.weight[0])
            key = weight or f"{labelling.trace.training} {contraction.node.name}"
            paired.setdefault((key, seen[key]), []).append((labelling, contraction, constant))
            seen[key] += 1
    times = Counter(key for key, _ in paired)
    return [
        _use(structure, found, live, model, once=times[key] == 1 and len(found) == 2)
        for (key, _), found in paired.items()
    ]


def _use(
    structure: Structure,
    found: list[tuple[Labelling, Contraction, Constants]],
    live: Mapping[str, Tensor],
    model: nn.Module,
    *,
    once: bool,
) -> Use:
    """Return one use of channels, from its contraction in training and in evaluation mode.

    A channel is known only if it is known in both modes, and it agrees if both modes have the same
    value. ``once`` says whether each mode has exactly one sum with this weight: only then can its
    bias take constants.
    """
    labelling, contraction, _ = found[0]
    node, dim = contraction.weight
    weight = labelling.trace.tensors.get(node)
    name = where(contraction.node)
    counts, rows = _counts(structure, labelling, contraction, live)
    values = [constant.values.double().cpu().numpy() for _, _, constant in found]
    known = [constant.known.cpu().numpy() for _, _, constant in found]
    return Use(
        name=name,
        weight=weight,
        roots=structure.classes[contraction.atoms],
        rows=rows,
        counts=counts,
        known=np.logical_and.reduce(known),
        values=values[-1],
        agrees=np.isclose(values[0], values[-1], rtol=1e-5, atol=1e-6),
        padded=contraction.padded,
        has_bias=once and dim == 1 and _can_have_bias(model, weight, summing=name),
    )


def _counts(
    structure: Structure, labelling: Labelling, contraction: Contraction, live: Mapping[str, Tensor]
) -> tuple[Flags, Positions]:
    """Return which positions have a live weight to which results, and the results' classes.

    Without a mask every position counts. If the weight is not a parameter, or its channels lie
    along a later dimension, one result that always stays represents all results.
    """
    node, dim = contraction.weight
    weight = labelling.trace.tensors.get(node)
    if weight is None or dim > 1:
        return np.ones((len(contraction.atoms), 1), dtype=np.bool_), np.array([-1])
    shape = tuple(node.meta["val"].shape)
    rows = labelling.of(node)[1 - dim]
    roots = np.full(shape[1 - dim], -1) if rows is None else structure.classes[rows]
    if weight not in live:
        return np.ones((shape[dim], shape[1 - dim]), dtype=np.bool_), roots
    counts = live[weight].cpu().reshape(*shape[:2], -1).any(2).movedim(dim, 0)
    return counts.numpy(), roots


def _can_have_bias(model: nn.Module, weight: str | None, *, summing: str) -> bool:
    """Whether the bias of the weight's module can take constants, and affects only these sums.

    The module of the weight need not compute the sum: the weight may be tied, or another module's
    forward() may use it.
    """
    path, _, name = (weight or "").rpartition(".")
    module = model.get_submodule(path)
    if name != "weight" or type(module) not in {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}:
        return False
    bias = module._parameters["bias"]
    named = model.named_parameters(remove_duplicate=False)
    return path == summing and sum(parameter is bias for _, parameter in named) <= 1
