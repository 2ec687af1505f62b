"""Where channels are summed over, and what is known of them there, in both modes."""

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
    """One place where channels are summed over, in both modes.

    Attributes:
        name: path of the module that sums.
        weight: name of the weight that they are multiplied by, or ``None`` if it is no parameter.
        roots: the class of each position that is summed over, ``(positions,)``.
        rows: the class of each result, ``(results,)``; -1 for one that is none.
        counts: where the weight is live, ``(positions, results)``.
        known: whether a channel is constant, in every mode.
        values: its constant, ``(positions,)``.
        agrees: whether that is the same in every mode.
        padded: whether zeros are put around what is summed.
        has_bias: whether the module that sums has a bias or can be given one.
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
        """Return which positions count for no result that stays."""
        stays = np.append(~removed, True)[self.rows]
        dead: Flags = np.logical_not(self.counts[:, stays].any(1))
        return dead

    def harmless(self, removed: Flags) -> Flags:
        """Return which positions can go without a change of any result that stays."""
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
        constants: for each labelling of ``structure``, what is known at each of its contractions.
        live: masks by parameter name.
        model: the model, to know which biases there can be.
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
    value. ``once`` says whether the weight is summed over once in each mode: only then can its bias
    take constants.
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
    """Return which position counts for which result, and the classes of the results."""
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
    """Whether constants can go into the bias of the weight's module, and so into these sums alone.

    That module need not be what sums: its weight is tied, or forward() takes it out of it.
    """
    path, _, name = (weight or "").rpartition(".")
    module = model.get_submodule(path)
    if name != "weight" or type(module) not in {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}:
        return False
    bias = module._parameters["bias"]
    named = model.named_parameters(remove_duplicate=False)
    return path == summing and sum(parameter is bias for _, parameter in named) <= 1
