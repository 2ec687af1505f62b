"""Agreement of all ranks on what would otherwise be chosen by each.

With one process, or without :mod:`torch.distributed`, everything here returns its argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparseopt.utils.bits import pack, unpack

__all__ = ["agree_on_masks", "agree_on_seed", "is_distributed", "require_agreement"]


def agree_on_seed(seed: int) -> int:
    """Return rank 0's seed. Collective: every rank has to call it."""
    return int(_from_rank_zero([seed])[0]) if is_distributed() else seed


def agree_on_masks(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return rank 0's masks, bool tensors of any shape. Collective: every rank has to call it."""
    if not is_distributed():
        return masks
    packed = _from_rank_zero([pack(mask.reshape(-1)).cpu() for mask in masks.values()])
    return {
        name: unpack(bits, mask.numel()).view(mask.shape)
        for (name, mask), bits in zip(masks.items(), packed, strict=True)
    }


def require_agreement(masks: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Raise unless all ranks that have the same layers have the same masks. Collective.

    Raises:
        RuntimeError: if they do not, or would choose differently from now on.
    """
    layers = [(name, tuple(mask.shape)) for name, mask in masks.items()]
    state = hashlib.sha256(generator.get_state().numpy().tobytes())
    for mask in masks.values():
        state.update(pack(mask.reshape(-1)).cpu().numpy().tobytes())
    mine = layers, state.hexdigest()
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine)
    if any(other[0] == layers and other != mine for other in theirs):
        raise RuntimeError(
            "the ranks have different masks: the SparseOptimizer was made before "
            "torch.distributed was initialised, so each rank chose its own. Call "
            "init_process_group() (make the Accelerator, start the launcher) first, or pass the "
            "same seed= on every rank."
        )


def is_distributed() -> bool:
    """Whether there is more than one process in the process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _from_rank_zero(objects: list[object]) -> list:  # type: ignore[type-arg]
    dist.broadcast_object_list(objects, src=0)
    return objects
