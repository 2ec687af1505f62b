"""Agreement of all ranks on what would otherwise be chosen by each.

With one process, or without :mod:`torch.distributed`, everything here returns its argument.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from sparseopt.bits import pack, unpack

__all__ = ["agree_on_masks", "agree_on_seed"]


def agree_on_seed(seed: int) -> int:
    """Return rank 0's seed. Collective: every rank has to call it."""
    return int(_from_rank_zero([seed])[0]) if _many_ranks() else seed


def agree_on_masks(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return rank 0's masks, bool tensors of any shape. Collective: every rank has to call it."""
    if not _many_ranks():
        return masks
    packed = _from_rank_zero([pack(mask.reshape(-1)).cpu() for mask in masks.values()])
    return {
        name: unpack(bits, mask.numel()).view(mask.shape)
        for (name, mask), bits in zip(masks.items(), packed, strict=True)
    }


def _many_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _from_rank_zero(objects: list[object]) -> list:  # type: ignore[type-arg]
    dist.broadcast_object_list(objects, src=0)
    return objects
