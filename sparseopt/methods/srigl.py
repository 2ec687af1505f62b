"""SRigL: RigL under a constant fan-in, with ablation of neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.distributions import layer_named, match_name
from sparseopt.masks.drop_and_grow import surviving
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import protected
from sparseopt.masks.topk import largest, largest_in_rows
from sparseopt.methods.gradient_memory import GradientMemory
from sparseopt.methods.registry import register_method
from sparseopt.methods.rigl import RigL
from sparseopt.methods.update import Move, Rewiring, Update
from sparseopt.utils.deprecation import renamed_fields
from sparseopt.utils.validation import check_fraction

__all__ = ["SRigL"]


@register_method
@renamed_fields(grow="gradient")
@dataclass(frozen=True)
class SRigL(RigL):
    r"""Structured RigL: every neuron of a layer has the same fan-in, or is ablated.

    A neuron is an index along the weight's first dimension: an output of ``Linear`` or a filter of
    ``Conv``. Its fan-in is the number of its live weights. A weight is *salient* if RigL would
    leave it live. Each update ablates the neurons with too few salient weights, and gives their
    weights to the other neurons. An ablated neuron returns when it has enough salient weights
    again. Two kinds of neurons are never ablated: the neurons of output layers, see ``outputs``,
    and neurons under weight norm.

    ``ConvTranspose`` and transformers' ``Conv1D`` have their inputs along the first dimension: in
    those layers the fan-out is constant.

    Args:
        gamma: the share of the fan-in that has to be salient, in [0, 1]; the paper has .3, and .95
            for a vision transformer. With ``None`` no neuron is ablated.
        gradient: as in :class:`RigL`.
        outputs: the names of the layers whose neurons are the model's outputs, so that none of them
            is ablated; ``()`` if all these layers are dense. By default the last sparse layer
            counts as the output layer, in the order in which the model's modules are registered.

    Raises:
        TypeError: if ``gamma`` is neither a number nor ``None``, or ``outputs`` is one string.
        ValueError: if ``gamma`` is out of range, if the model has no layer of a name in
            ``outputs``, or for ``regrow="never"``, with which a neuron may not
            have enough candidates to reach its fan-in.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 3), torch.nn.Linear(3, 2))
        >>> optimizer = SparseOptimizer(torch.optim.SGD(model.parameters()), model,
        ...                             method="srigl", density=0.2, init={}, total_steps=1000)
        >>> optimizer.masks["0.weight"].sum(1)
        tensor([4, 4, 4])

    Reference: Lasby et al. 2024, "Dynamic Sparse Training with Structured Sparsity", section 3.
    """

    name: ClassVar[str] = "srigl"

    # Keyword-only, because by position this field of RigL would come before gamma.
    gradient: GradientMemory | None = field(default=None, kw_only=True)
    gamma: float | None = 0.3
    outputs: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None:
            check_fraction("gamma", self.gamma)
        if isinstance(self.outputs, str):
            raise TypeError(
                f"outputs={self.outputs!r} must be several names: write ({self.outputs!r},)."
            )
        if self.outputs is not None:
            object.__setattr__(self, "outputs", tuple(self.outputs))
        if self.regrow == "never":
            raise ValueError(
                "regrow='never' does not suit method='srigl': a neuron may not have enough other "
                "weights to grow to its fan-in. Use 'keep' or 'zero'."
            )

    def _check_outputs(self, names: Mapping[str, object]) -> None:
        """Raise :class:`ValueError` if one of ``outputs`` is no layer or parameter of a model.

        Args:
            names: the model's parameters, by name.
        """
        for key in self.outputs or ():
            match_name("outputs", key, names)

    def live_count(self, shape: tuple[int, ...], target: int) -> int:
        """Return the count nearest to ``target`` that gives all neurons the same fan-in."""
        neurons, fan_in = shape[0], math.prod(shape[1:])
        nearest = (2 * target + neurons) // (2 * neurons)
        return neurons * min(max(1, nearest), fan_in)

    def initial_mask(self, scores: Tensor, live: int) -> Tensor:
        """Return a mask of the highest scores of every neuron, with the same number in each.

        A neuron whose scores are all 0 starts ablated, unless all scores of the layer are 0.
        """
        rows = scores.reshape(scores.shape[0], -1)
        active = (rows != 0).any(1)
        active |= ~active.any()
        fan_in = min(max(1, live // int(active.sum())), rows.shape[1])
        return largest_in_rows(rows, active * fan_in, fan_in).view(scores.shape)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return for each layer which of its weights are live after the update."""
        return [self._rewire(layer, update) for layer in layers]

    def _rewire(self, layer: SparseLayer, update: Update) -> Move:
        """Return the move of one layer, which leaves every active neuron ``fan_in`` live weights.

        1. The ``live - drop`` highest scores among active neurons survive.
        2. Of these, each neuron keeps the ``fan_in`` highest.
        3. Each active neuron grows weights of highest grow score until it has ``fan_in``.
        """
        drop = self._move(layer, update.fraction).drop
        if drop == 0:
            return Move(0, 0)
        neurons = layer.weight.shape[0]
        scores = self.drop_scores(layer, update)
        if (kept := protected(layer)) is not None:
            scores = scores.masked_fill(kept, torch.inf)
        live_only = layer.expand(scores, -torch.inf)
        magnitude = full_tensor(live_only).reshape(neurons, -1)
        growth = full_tensor(self.grow_scores(layer, update)).reshape(neurons, -1)
        active = self._active_neurons(layer, update, drop, growth)
        fan_in = layer.target // int(active.sum())

        # The weights that ablated neurons lose count as drops, so fewer others are dropped.
        magnitude[~active] = -torch.inf
        gone = magnitude.isneginf()
        stay = min(layer.live - drop, gone.numel() - int(gone.sum()))
        survivors = largest(magnitude.reshape(-1), stay, gone.reshape(-1)).view_as(gone)
        own = survivors.sum(1).clamp(max=fan_in)
        survivors = largest_in_rows(magnitude, own, fan_in, ~survivors)
        grown = largest_in_rows(growth, active * fan_in - own, fan_in, survivors)
        stay = int(own.sum())
        return Rewiring(
            drop=layer.live - stay,
            grow=fan_in * int(active.sum()) - stay,
            survivors=survivors.reshape(-1),
            mask=(survivors | grown).reshape(-1),
        )

    def _is_output(self, layer: SparseLayer, update: Update) -> bool:
        if self.outputs is None:
            return layer is update.layers[-1]
        return any(layer_named(key, [layer.name]) for key in self.outputs)

    def _active_neurons(
        self, layer: SparseLayer, update: Update, drop: int, growth: Tensor
    ) -> Tensor:
        """Return which neurons are not ablated, bool, ``(neurons,)``.

        They are the neurons with enough salient weights, and at least as many neurons as hold the
        layer's target if they are full: those with the most salient weights.
        """
        neurons, columns = growth.shape
        if self.gamma is None or self._is_output(layer, update) or layer.norm_slices:
            return full_tensor(layer.mask).reshape(neurons, columns).any(1)
        stays = surviving(layer, self.drop_scores(layer, update), drop)
        survivors = full_tensor(layer.expand(stays)).reshape(-1)
        newcomers = largest(growth.reshape(-1), drop, survivors)
        salient = (survivors | newcomers).view(neurons, columns).sum(1)
        enough = salient >= max(1, int(self.gamma * (layer.target // neurons)))
        room = math.ceil(layer.target / columns)
        return enough | largest(salient.float(), room)
