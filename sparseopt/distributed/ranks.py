"""Agreement of all ranks on choices that each rank would otherwise make alone.

With one process, or without :mod:`torch.distributed`, everything here returns its argument.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sparseopt.utils.bits import pack, unpack
from sparseopt.utils.errors import RankMismatchError
from sparseopt.utils.random import mask_generator
from sparseopt.utils.validation import check_seed

__all__ = [
    "agree_on_masks",
    "agree_on_values",
    "agreed_generator",
    "from_all_ranks",
    "from_rank_zero",
    "is_distributed",
    "masks_of_rank_zero",
    "require_agreement",
]

T = TypeVar("T")


def agreed_generator(seed: int | None) -> torch.Generator:
    """Return the random source of masks, from rank 0's seed. Collective: every rank has to call it.

    Args:
        seed: the seed; torch's initial seed by default.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if torch does not take it.
    """
    mine = torch.initial_seed() if seed is None else check_seed("seed", seed)
    return mask_generator(from_rank_zero(mine))


def from_rank_zero(value: T) -> T:
    """Return rank 0's value. Collective: every rank has to call it."""
    if not is_distributed():
        return value
    sent: T = _from_rank_zero([value])[0]
    return sent


def agree_on_masks(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return rank 0's masks, bool tensors of any shape. Collective: every rank has to call it.

    Raises:
        ValueError: if this rank's masks have other names or shapes.
    """
    if not is_distributed():
        return masks
    (sent,) = _from_rank_zero([_packed(masks)])
    theirs = {name: shape for name, (shape, _) in sent.items()}
    mine = {name: tuple(mask.shape) for name, mask in masks.items()}
    if theirs != mine:
        raise ValueError(f"rank 0 has masks for {theirs}, but this rank has masks for {mine}.")
    return {name: _unpacked(sent[name]) for name in masks}


def masks_of_rank_zero(choose: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Call ``choose`` on rank 0 only, and return its masks on every rank. Collective.

    Raises:
        Exception: whatever ``choose`` raises. The other ranks raise a ``TypeError``, a
            ``ValueError`` or a ``RuntimeError`` with the same message.
    """
    if not is_distributed():
        return choose()
    sent: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            sent[0] = _packed(choose())
        except Exception as raised:
            # The other ranks wait for an answer in any case. Not every exception can be pickled.
            error = raised
            kinds = (TypeError, ValueError)
            kind = next((kind for kind in kinds if isinstance(raised, kind)), RuntimeError)
            sent[1] = kind, str(raised)
    packed, failure = _from_rank_zero(sent)
    if error is not None:
        raise error
    if failure is not None:
        kind, words = failure
        raise kind(words)
    return {name: _unpacked(mask) for name, mask in packed.items()}


def agree_on_values(values: Sequence[Any]) -> list[Any]:
    """Return rank 0's tensors and plain values. Collective: every rank has to call it.

    The values are sent only if they differ. A rank keeps its own values if their shapes or their
    number are not rank 0's, for example because each rank has layers of its own.
    """
    if not is_distributed():
        return list(values)
    kinds = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in values]
    mine = kinds, _digest(values)
    everyones = from_all_ranks(mine)
    same_kinds = [other for other in everyones if other[0] == everyones[0][0]]
    if all(other == same_kinds[0] for other in same_kinds):
        return list(values)
    sent = _from_rank_zero([one.cpu() if isinstance(one, Tensor) else one for one in values])
    return sent if kinds == everyones[0][0] else list(values)


def require_agreement(
    masks: Mapping[str, Tensor], generator: torch.Generator, kept: Sequence[Any] = ()
) -> None:
    """Raise unless all ranks that have the same layers have the same masks. Collective.

    Args:
        masks: the masks by layer.
        generator: the source of random masks.
        kept: tensors and plain values that the method keeps.

    Raises:
        RankMismatchError: if the masks differ, or if the generator or the method's values do, so
            that the ranks would choose differently from now on.
    """
    layers = [(name, tuple(mask.shape)) for name, mask in masks.items()]
    packed = [pack(mask.reshape(-1)) for mask in masks.values()]
    mine = layers, _digest([generator.get_state(), *packed, *kept])
    if any(other[0] == layers and other != mine for other in from_all_ranks(mine)):
        raise RankMismatchError(
            "the ranks have different masks, or their methods have different state: the "
            "SparseOptimizer was made before torch.distributed was initialised, so each rank chose "
            "its own. Call init_process_group() (make the Accelerator, start the launcher) first, "
            "or pass the same seed= on every rank."
        )


def is_distributed() -> bool:
    """Whether there is more than one process in the process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def from_all_ranks(mine: T) -> list[T]:
    """Return the values of all ranks, in rank order. Collective: every rank has to call it."""
    if not is_distributed():
        return [mine]
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine)
    return theirs


def _packed(masks: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], Tensor]]:
    return {name: (tuple(mask.shape), pack(mask.reshape(-1)).cpu()) for name, mask in masks.items()}


def _unpacked(packed: tuple[tuple[int, ...], Tensor]) -> Tensor:
    shape, bits = packed
    return unpack(bits, math.prod(shape)).view(shape)


def _digest(values: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _from_rank_zero(objects: list[object]) -> list:  # type: ignore[type-arg]
    dist.broadcast_object_list(objects, src=0)
    return objects
