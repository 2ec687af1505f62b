"""Noticing that new masks would make zeros of what a sparse model was trained to be.

A layer counts as sparse already if fewer than half of its weights, and not none, are nonzero. Both
warnings come before anything is written.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import local, sums_over_shards
from sparseopt.masks.layer import SparseLayer

__all__ = ["warn_of_lost_weights", "warn_of_weights_outside"]


def warn_of_lost_weights(
    layers: Sequence[SparseLayer], *, keep_zeros: str, only_fewer: bool, stacklevel: int
) -> None:
    """Warn if the first masks of ``layers`` drop weights, or revive zeros, of a sparse model.

    Collective if weights are sharded.

    Args:
        layers: new layers whose masks nobody chose weight by weight; their masks are not applied.
        keep_zeros: the argument that would have kept the zeros.
        only_fewer: whether masks hold the largest weights, so that fewer live weights than nonzero
            ones in all are what was asked for.
        stacklevel: of the warning, as seen from here.
    """
    sparse = _sparse_already(_nonzero(layers))
    if only_fewer and sum(layer.live for layer in sparse) < sum(sparse.values()):
        return
    lost = _lost(sparse)
    if lost:
        warnings.warn(
            f"the model was sparse before: {_share_lost(lost, sparse)} its new mask and become "
            f"zero. Pass {keep_zeros} to keep its zeros and nothing else. If the optimizer's state "
            "dict is loaded next, its masks count and nothing is lost.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
        return
    revived = [layer for layer in sparse if layer.is_full]
    if revived and len(revived) == len(sparse):
        warnings.warn(
            f"the model was sparse before: most weights of {_names(revived)} are zero, and all of "
            f"them are live in the first mask, so its zeros will be trained. Pass {keep_zeros} to "
            "keep its zeros. If the optimizer's state dict is loaded next, its masks count.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_weights_outside(
    layers: Sequence[SparseLayer], *, chosen_by_size: bool, stacklevel: int
) -> None:
    """Warn if weights were loaded after they were masked, before the first step, and will be lost.

    Dense weights are what random masks expect, and no matter.

    Collective if weights are sharded.

    Args:
        layers: all layers.
        chosen_by_size: whether the masks keep the largest weights that the layers had.
        stacklevel: of the warning, as seen from here.
    """
    nonzero = _nonzero(layers)
    looked_at = nonzero if chosen_by_size else _sparse_already(nonzero)
    lost = _lost(looked_at)
    if not lost:
        return
    if _sparse_already(nonzero):
        loaded, remedy = (
            "a sparse model was loaded",
            (
                "Load the optimizer's state dict too; or load the model first, and make the "
                "SparseOptimizer with mask='nonzero' then."
            ),
        )
    else:
        loaded, remedy = (
            "weights were loaded",
            (
                "Load them first, and make the SparseOptimizer with mask='magnitude' then: its "
                "masks are of the weights that were there before."
            ),
        )
    warnings.warn(
        f"{loaded} after the SparseOptimizer was made, without its masks: "
        f"{_share_lost(lost, nonzero)} its mask at the first step and become zero. {remedy}",
        UserWarning,
        stacklevel=stacklevel + 1,
    )


@torch.no_grad()
def _nonzero(layers: Sequence[SparseLayer]) -> dict[SparseLayer, int]:
    return _counted(layers, (local(layer.weight.detach()) for layer in layers))


def _sparse_already(nonzero: Mapping[SparseLayer, int]) -> dict[SparseLayer, int]:
    """Return what is there of the layers most of whose weights are zero, but not all."""
    return {layer: count for layer, count in nonzero.items() if 0 < 2 * count < layer.numel}


@torch.no_grad()
def _lost(nonzero: Mapping[SparseLayer, int]) -> dict[SparseLayer, int]:
    """Return how many nonzero weights lie outside the mask of each layer, where any do."""
    layers = [layer for layer in nonzero if not layer.is_full]
    live = _counted(layers, (_live_entries(layer) for layer in layers))
    return {layer: nonzero[layer] - live[layer] for layer in layers if nonzero[layer] > live[layer]}


def _live_entries(layer: SparseLayer) -> Tensor:
    weight = layer.weight.detach()
    if layer.is_sharded:
        return local(weight).masked_fill(~local(layer.mask), 0)
    live = layer.gather(weight)
    # Masked state has no use for them.
    layer._forget_positions()
    return live


def _counted(layers: Sequence[SparseLayer], values: Iterable[Tensor]) -> dict[SparseLayer, int]:
    """Count what is nonzero, over all ranks that hold a part, waiting for the device once."""
    counts = [torch.count_nonzero(tensor) for tensor in values]
    mine = torch.stack([count.to(counts[0].device) for count in counts]).tolist() if counts else []
    sums = sums_over_shards(mine, [layer.weight for layer in layers])
    return dict(zip(layers, sums, strict=True))


def _share_lost(lost: dict[SparseLayer, int], nonzero: dict[SparseLayer, int]) -> str:
    layer, count = next(iter(lost.items()))
    share = f"{count / nonzero[layer]:.0%} of the nonzero weights of {layer.name!r}"
    more = f" (and of {_more_layers(len(lost) - 1)})" if len(lost) > 1 else ""
    return f"{share}{more} are outside"


def _names(layers: Collection[SparseLayer]) -> str:
    first = next(iter(layers)).name
    return repr(first) + (f" (and of {_more_layers(len(layers) - 1)})" if len(layers) > 1 else "")


def _more_layers(count: int) -> str:
    return "1 more layer" if count == 1 else f"{count} more layers"
