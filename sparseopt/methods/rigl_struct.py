"""RigL on channels of convolutions, neurons of linear layers and heads of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.topk import largest, smallest
from sparseopt.methods.base import Method, TrainingCost
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Move, Rewiring, Update
from sparseopt.structured.channel_groups import (
    KINDS,
    MAKERS,
    ChannelGroup,
    Kinds,
    find_channel_groups,
)
from sparseopt.structured.channel_masks import (
    WEIGHTS,
    canonical_groups,
    changed_masks,
    live_channels,
    refuse_sharded,
)
from sparseopt.structured.channel_scores import gradient_score, magnitude
from sparseopt.structured.fresh_channels import put_fresh_channels
from sparseopt.utils.validation import check_density, unknown_name
from sparseopt.utils.wrappers import canonical_name

__all__ = ["RigLStruct"]


# Defined before the class, because register_method makes an instance.
def _check_kinds(kinds: Kinds) -> None:
    if kinds is None:
        return
    if isinstance(kinds, str):
        raise TypeError(f"kinds={kinds!r} must be several names: write ({kinds!r},).")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kinds", kind, KINDS)
        if isinstance(kinds, Mapping):
            check_density(f"kinds[{kind!r}]", kinds[kind])


@register_method
@dataclass(frozen=True)
class RigLStruct(Method):
    r"""RigL on channels, neurons and heads, which :func:`~sparseopt.compact` can remove.

    This method drops and grows channels of convolutions, hidden neurons of linear layers and heads
    of attention, each with all weights that it owns: on both sides of residual connections and
    depthwise convolutions, in both halves of a gated layer, in queries, keys, values and the layers
    that read them. A group of a grouped convolution moves as one unit, and so does a head of keys
    with all heads of queries that share it. The number of live channels stays the same.

    ``density`` is the largest share of the weights that is live: of the weights of all convolutions
    if channels move, and of the linear layers in which neurons or heads that move own weights. If
    ``init`` gives a layer the density :math:`d`, the aim is :math:`\sqrt d` of its channels, or
    :math:`d` of its neurons or heads. All these shares are then scaled by one factor to meet
    ``density``; the shares of a mapping are not. All costs are costs of the smaller model; an
    update step computes the full model. ``optimizer.layers`` also lists the vectors that channels
    own.

    Args:
        groups: the channels of the model, as :func:`~sparseopt.find_channel_groups`
            returns them. By default they are found with the ``example_inputs=`` that
            :class:`~sparseopt.SparseOptimizer` is given.
        kinds: the kinds that move: ``"channel"``, ``"neuron"`` and ``"head"``; or a mapping from
            kinds to the share that is live in every group, in (0, 1], which overrides ``density``
            and ``init``. By default channels of convolutions move, and neurons and heads in a model
            that has no channels that can be dropped.

    Raises:
        ValueError: for ``regrow="zero"``, which would need a new filter for a channel before that
            channel is dropped; or if a kind is not known or its share is out of range.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(8, 2))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="rigl-struct",
        ...     example_inputs=torch.zeros(2, 1, 5, 5), density=0.3, init={}, total_steps=1000)
        >>> {layer.name: layer.live for layer in optimizer.layers}  # doctest: +NORMALIZE_WHITESPACE
        {'0.weight': 36, '1.weight': 4, '1.bias': 4, '3.weight': 144, '3.bias': 4, '6.weight': 8}

    Reference: the idea after Sundar & Dwaraknath 2021, supplement, section 4, where it masks single
    kernels, and after Evci et al. 2020, algorithm 1; growth with the function unchanged after Evci
    et al. 2022, "GradMax: Growing Neural Networks using Gradient Information".
    """

    name: ClassVar[str] = "rigl-struct"
    needs_dense_gradient: ClassVar[bool] = True
    keeps_live_counts: ClassVar[bool] = True

    groups: Sequence[ChannelGroup] = field(default=(), repr=False, compare=False)
    kinds: Kinds = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regrow == "zero":
            raise ValueError(
                "regrow='zero' does not suit method='rigl-struct': a channel that drops and grows "
                "in one update would need a new filter before it is dropped. Use 'keep' or 'never'."
            )
        object.__setattr__(self, "groups", canonical_groups(self.groups))
        _check_kinds(self.kinds)

    def _with_groups_of(self, model: nn.Module, example_inputs: Any) -> RigLStruct:
        """Return this method with the channels of ``model``, or itself if it has groups already.

        Args:
            model: the model.
            example_inputs: its input, a tuple of positional or a mapping of keyword arguments.

        Raises:
            UntraceableModelError: if ``torch.export`` refuses the model.
        """
        if self.groups:
            return self
        return replace(self, groups=find_channel_groups(model, example_inputs))

    def prepare_forward(self, model: nn.Module, update: Update) -> None:
        """Give dropped channels fresh filters and scales, for one step.

        Raises:
            TypeError: if weights were sharded after the optimizer was made.
        """
        refuse_sharded({layer.name: layer.weight for layer in update.layers})
        buffers = {canonical_name(name): value for name, value in model.named_buffers()}
        layers = {layer.name: layer for layer in update.layers}
        put_fresh_channels(self.groups, layers, buffers, update.generator)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return for each layer which of its weights are live after the update."""
        by_name = {layer.name: layer for layer in layers}
        absent = {layer.name for layer in update.layers} - by_name.keys()
        masks = {name: layer.mask for name, layer in by_name.items()}
        drops, exchanges = [], []
        for group in self.groups:
            owned = {place.name for place in group.slices}
            if not _can_move(group, masks) or owned & absent:
                continue
            survivors, live = self._exchange(group, by_name, update)
            drops.append((group, survivors))
            exchanges.append((group, live))
        after_drop, after = changed_masks(masks, drops), changed_masks(masks, exchanges)
        return [
            _rewiring(layer, after_drop[layer.name], after[layer.name])
            if layer.name in after
            else Move(0, 0)
            for layer in layers
        ]

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the average over one step of the full model and ``delta_t`` of live channels."""
        ordinary = 3.0 * cost.delta_t * cost.mean_sparse
        return (ordinary + 3.0 * cost.dense) / (cost.delta_t + 1)

    def _exchange(
        self, group: ChannelGroup, layers: Mapping[str, SparseLayer], update: Update
    ) -> tuple[Tensor, Tensor]:
        """Return which channels survive the drop, and which are live after the growth."""
        live = live_channels(group, {name: layer.mask for name, layer in layers.items()})
        count = int(update.fraction * int(live.sum()))
        if self.regrow == "never":
            count = min(count, int((~live).sum()))
        weights = {name: layer.weight for name, layer in layers.items()}
        gradients = {
            name: layer.weight.grad
            for name, layer in layers.items()
            if layer.weight.grad is not None
        }
        sizes = magnitude(group, weights).masked_fill(~live, torch.inf)
        survivors = live & ~smallest(sizes, count)
        taken = live if self.regrow == "never" else survivors
        return survivors, survivors | largest(gradient_score(group, gradients), count, taken)


def _can_move(group: ChannelGroup, masks: Mapping[str, Tensor]) -> bool:
    """Whether some channels are dropped, and ``masks`` has all weights of the group."""
    weights = {place.name for place in group.slices_of(*WEIGHTS)}
    if not group.slices_of(*MAKERS) or not weights <= masks.keys():
        return False
    return not bool(live_channels(group, masks).all())


def _rewiring(layer: SparseLayer, survivors: Tensor, mask: Tensor) -> Rewiring:
    stay = int(survivors.sum())
    return Rewiring(
        drop=layer.live - stay,
        grow=int(mask.sum()) - stay,
        survivors=survivors.reshape(-1),
        mask=mask.reshape(-1),
        values=layer.weight.detach().clone(),
    )
