"""Makes layers whose masks drop entire channels of a model."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from sparseopt.distributed.ranks import agree_on_masks
from sparseopt.distributions import Init, live_counts, match_name
from sparseopt.masks.initial import masks_by_layer
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.topk import largest
from sparseopt.structured.channel_counts import channel_counts, share_count
from sparseopt.structured.channel_groups import KINDS, MAKERS, ChannelGroup, Kinds
from sparseopt.structured.channel_masks import (
    WEIGHTS,
    changed_masks,
    live_channels,
    refuse_sharded,
)
from sparseopt.structured.channel_scores import magnitude
from sparseopt.utils.errors import NoSparseLayerError
from sparseopt.utils.random import uniform
from sparseopt.utils.validation import unknown_name

__all__ = ["channel_layers"]

logger = logging.getLogger("sparseopt")

MASKS: Final = ("random", "magnitude")
CHANNEL: Final = "channel"


def channel_layers(
    groups: Sequence[ChannelGroup],
    weights: Mapping[str, nn.Parameter],
    trained: Mapping[str, nn.Parameter],
    overrides: Mapping[str, float],
    *,
    kinds: Kinds = None,
    density: float,
    init: Init,
    mask: str | Mapping[str, Tensor],
    generator: torch.Generator,
) -> list[SparseLayer]:
    r"""Choose the live channels of each group, and mask everything that dropped channels own.

    ``init`` gives each layer a density. Let :math:`d` be the mean density of the layers that
    produce a group's channels. The aim is a share :math:`\sqrt d` of live channels for
    convolutions, which also lose inputs, and a share :math:`d` for neurons and heads, which don't.
    Unless ``init`` or ``kinds`` is a mapping, one factor for all groups then brings the live
    weights of the layers that count to ``density``. All convolutions count if channels move, and so
    do the linear layers in which neurons or heads that move own weights.

    Args:
        groups: the channels of the model.
        weights: the weights that can be sparse, by name.
        trained: all parameters that may be masked, by name: those that the optimizer trains.
        overrides: the densities of ``weights`` that have one of their own.
        kinds: the kinds of groups that move, or the share of live channels by kind; ``None`` for
            channels if any can be dropped, else neurons and heads.
        density: the largest live share of the weights that count.
        init: how much of each layer is live.
        mask: which channels are live: ``"random"``, ``"magnitude"``, or masks by layer name.
        generator: the random source, on the CPU.

    Returns:
        The layers of ``weights``, and of vectors in which dropped channels own entries, in the
        order of ``trained``.

    Raises:
        NoSparseLayerError: if no channels can be dropped.
        TypeError: if a weight is sharded.
        ValueError: if the density can't be met, or a name or a mask is wrong.
    """
    refuse_sharded(weights)
    groups = _droppable(groups, trained, kinds)
    shapes = _shapes_that_count(groups, weights)
    counted = shapes
    if any(group.kind != CHANNEL for group in groups):
        # Some distributions treat the model's first layer differently, so they need all shapes.
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    own = {name: value for name, value in overrides.items() if name in shapes}
    live_of = live_counts(shapes, density, init, own)
    shares = [_share(group, shapes, live_of, kinds) for group in groups]
    if isinstance(init, Mapping) or isinstance(kinds, Mapping):
        counts = [
            share_count(share, group.channels) for share, group in zip(shares, groups, strict=True)
        ]
    else:
        counts = channel_counts(groups, shares, counted, density)
    full = {
        name: torch.ones(value.shape, dtype=torch.bool, device="cpu")
        for name, value in trained.items()
    }
    live = _choose(groups, counts, trained, mask, generator)
    if mask != "random":
        agreed = agree_on_masks({str(place): flags for place, flags in enumerate(live)})
        live = list(agreed.values())
    partial = [pair for pair in zip(groups, live, strict=True) if not bool(pair[1].all())]
    masks = changed_masks(full, partial)
    if not isinstance(mask, str):
        _check_whole(mask, {**full, **masks})
    return [
        SparseLayer(name, trained[name], chosen, int(chosen.sum()))
        for name, chosen in {**full, **masks}.items()
        if name in weights or name in masks
    ]


def _droppable(
    groups: Sequence[ChannelGroup], trained: Mapping[str, nn.Parameter], kinds: Kinds
) -> list[ChannelGroup]:
    """Return the groups whose channels can be dropped, and log why others can't."""
    _check_sizes(groups, trained)
    reasons = [(group, _why_not(group, trained)) for group in groups]
    free = {group.kind for group, reason in reasons if reason is None}
    moving = set(kinds) if kinds is not None else {CHANNEL} if CHANNEL in free else {*KINDS}
    reasons = [
        (group, reason or (None if group.kind in moving else _left_out(group.kind, kinds)))
        for group, reason in reasons
    ]
    whole = "; ".join(f"{group.name}: {reason}" for group, reason in reasons if reason is not None)
    found = [group for group, reason in reasons if reason is None]
    if not found:
        raise NoSparseLayerError(
            "no channels, neurons or heads can be dropped. "
            + (
                whole
                or "No groups are known: pass example_inputs= with the model, or "
                "groups=find_channel_groups(model, inputs)."
            )
        )
    if missing := [kind for kind in kinds or () if kind not in free]:
        warnings.warn(
            f"kinds={kinds!r}: no {' and no '.join(missing)} of this model can be dropped, so they "
            f"all stay. These keep all their channels: {whole or 'none'}.",
            stacklevel=2,
        )
    if whole:
        logger.info("these keep all their channels: %s.", whole)
    return found


def _left_out(kind: str, kinds: Kinds) -> str:
    if kinds is None:
        return f"{kind}s don't move if channels of convolutions do, unless kinds= has {kind!r}"
    return f"kinds={kinds!r} does not have {kind!r}"


def _shapes_that_count(
    groups: Sequence[ChannelGroup], weights: Mapping[str, nn.Parameter]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that count for the density; see :func:`channel_layers`."""
    owned = {
        place.name
        for group in groups
        if group.kind != CHANNEL
        for place in group.slices_of(*WEIGHTS)
    }
    convolutions = any(group.kind == CHANNEL for group in groups)
    return {
        name: tuple(weight.shape)
        for name, weight in weights.items()
        if (weight.dim() > 2 and convolutions) or name in owned
    }


def _check_sizes(groups: Sequence[ChannelGroup], trained: Mapping[str, nn.Parameter]) -> None:
    for group in groups:
        for place in group.slices:
            if place.name not in trained:
                continue
            shape = tuple(trained[place.name].shape)
            if place.dim >= len(shape) or int(place.index.max()) >= shape[place.dim]:
                raise ValueError(
                    f"groups= belongs to another model: {place.name!r} has shape {shape}, which is "
                    f"too small for these groups in dimension {place.dim}."
                )


def _why_not(group: ChannelGroup, trained: Mapping[str, nn.Parameter]) -> str | None:
    """Return why a group's channels cannot be dropped, or ``None`` if they can."""
    if group.blocked is not None:
        return group.blocked
    if group.channels == 1:
        return "there is only one"
    if tied := group.slices_of("tied"):
        return f"the weight {tied[0].name!r} both makes and reads them"
    missing = {place.name for place in group.slices_of(*WEIGHTS)} - trained.keys()
    if missing:
        return f"the optimizer does not train {min(missing)!r}, or keeps it dense"
    if not group.slices_of(*MAKERS):
        return "no weight makes them"
    if not group.slices_of("consumer"):
        return "nothing is computed from them"
    return None


def _share(
    group: ChannelGroup,
    shapes: Mapping[str, tuple[int, ...]],
    live_of: Mapping[str, int],
    kinds: Kinds,
) -> float:
    """Return the share of a group's channels that shall be live; see :func:`channel_layers`."""
    if isinstance(kinds, Mapping):
        return kinds[group.kind]
    names = {place.name for place in group.slices_of(*MAKERS)} & shapes.keys()
    if not names:
        return 1.0
    numel = sum(math.prod(shapes[name]) for name in names)
    mean = sum(live_of[name] for name in names) / numel
    return math.sqrt(mean) if group.kind == CHANNEL else mean


def _choose(
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    trained: Mapping[str, nn.Parameter],
    mask: str | Mapping[str, Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    """Return for each group which channels are live, bool, ``(channels,)``."""
    if isinstance(mask, str) and mask not in MASKS:
        raise unknown_name("mask", mask, MASKS)
    given = {} if isinstance(mask, str) else _given(mask, trained)
    chosen = []
    for group, count in zip(groups, counts, strict=True):
        if group.slices_of(*MAKERS)[0].name in given:
            chosen.append(live_channels(group, given))
        elif count == group.channels:
            chosen.append(torch.ones(count, dtype=torch.bool, device="cpu"))
        elif mask == "magnitude":
            chosen.append(largest(magnitude(group, trained), count))
        else:
            chosen.append(largest(uniform((group.channels,), generator), count))
    return chosen


def _given(mask: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return given masks by name of the parameter, on the CPU, after a check of each."""
    found = {}
    for name, value in masks_by_layer("mask", mask, trained).items():
        if value.dtype != torch.bool or value.shape != trained[name].shape:
            raise ValueError(
                f"mask[{name!r}] is {value.dtype} of shape {tuple(value.shape)}, but must be bool "
                f"of shape {tuple(trained[name].shape)}."
            )
        if not value.any():
            raise ValueError(f"mask[{name!r}] has no live channel, but at least one is needed.")
        found[name] = value.cpu()
    return found


def _check_whole(given: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Refuse masks that drop anything except entire channels with all their weights."""
    for key, value in given.items():
        if not torch.equal(value.cpu(), masks[match_name("mask", key, masks)]):
            raise ValueError(
                f"mask[{key!r}] does not drop entire channels: pass all masks of another run of "
                "this method on the same model, as final_masks() returns them."
            )
