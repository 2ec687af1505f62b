"""Warnings that new masks would zero trained weights of a model that is sparse already.

A layer counts as sparse already if it has nonzero weights, but fewer than half of its weights are
nonzero. Both warnings are given before anything is written.
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
        layers: new layers whose masks were not given by the user; the masks are not applied yet.
        keep_zeros: the argument that would have kept the zeros.
        only_fewer: whether the masks keep the largest weights. Then the user may ask for fewer live
            weights in total than are nonzero, and that is no reason to warn.
        stacklevel: the stack level of the warning, counted from this function.
    """
    sparse = _sparse_already(_nonzero(layers))
    if only_fewer and sum(layer.live for layer in sparse) < sum(sparse.values()):
        return
    lost = _lost(sparse)
    if lost:
        warnings.warn(
            f"the model was sparse before: {_share_lost(lost, sparse)} its new mask and become "
            f"zero. Pass {keep_zeros} to keep its zeros and nothing else. If you load the "
            "optimizer's state dict next, its masks replace these and nothing is lost.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
        return
    revived = [layer for layer in sparse if layer.is_full]
    if revived and len(revived) == len(sparse):
        warnings.warn(
            f"the model was sparse before: most weights of {_names(revived)} are zero, and all of "
            f"them are live in the first mask, so its zeros will be trained. Pass {keep_zeros} to "
            "keep its zeros. If you load the optimizer's state dict next, its masks replace these.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def warn_of_weights_outside(
    layers: Sequence[SparseLayer], *, chosen_by_size: bool, stacklevel: int
) -> None:
    """Warn if weights were loaded between masking and the first step, and will be lost.

    Dense weights under random masks are normal, and cause no warning.

    Collective if weights are sharded.

    Args:
        layers: all layers.
        chosen_by_size: whether the masks keep the largest weights that the layers had.
        stacklevel: the stack level of the warning, counted from this function.
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
                "Load the optimizer's state dict too; or load the model first, and then make the "
                "SparseOptimizer with mask='nonzero'."
            ),
        )
    else:
        loaded, remedy = (
            "weights were loaded",
            (
                "Load them first, and then make the SparseOptimizer with mask='magnitude': these "
                "masks were chosen by the weights that the model had before."
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
    """Return the layers that are sparse already, with their counts of nonzero weights."""
    return {layer: count for layer, count in nonzero.items() if 0 < 2 * count < layer.numel}


@torch.no_grad()
def _lost(nonzero: Mapping[SparseLayer, int]) -> dict[SparseLayer, int]:
    """Return how many nonzero weights lie outside each layer's mask, for layers with any."""
    layers = [layer for layer in nonzero if not layer.is_full]
    live = _counted(layers, (_live_entries(layer) for layer in layers))
    return {layer: nonzero[layer] - live[layer] for layer in layers if nonzero[layer] > live[layer]}


def _live_entries(layer: SparseLayer) -> Tensor:
    weight = layer.weight.detach()
    if layer.is_sharded:
        return local(weight).masked_fill(~local(layer.mask), 0)
    live = layer.gather(weight)
    # gather() made the positions, and masked state does not use them.
    layer._forget_positions()
    return live


def _counted(layers: Sequence[SparseLayer], values: Iterable[Tensor]) -> dict[SparseLayer, int]:
    """Count the nonzero entries of each layer over all ranks, with one wait for the device."""
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
