"""Weights that are sharded over processes as DTensors: FSDP2, tensor parallel.

A sharded tensor has the shape of the full tensor; each rank holds a part. Masks are sharded like
their weights. Ordinary steps touch only the local part. A mask update gathers the full layer on
every rank, so that every rank decides the same drop and grow. For a tensor that is not sharded, all
functions here return their argument or do nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "full_tensor",
    "is_sharded",
    "is_writer",
    "local",
    "on_any_rank",
    "placement",
    "shard_like",
    "sums_over_shards",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    # Importing DTensor takes long, and a program that has a DTensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of ``tensor``: a view, so that writing to it writes to ``tensor``."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered. Collective over its mesh: every rank has to call it."""
    if not is_sharded(tensor):
        return tensor
    together: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return together


def placement(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return mesh and placements of a sharded tensor, to compare; ``None`` if it is not sharded."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return ``tensor``, of the shape of ``weight``, sharded as ``weight`` is.

    Each rank has the full tensor and keeps its own part, without communication.
    """
    if placement(tensor) == placement(weight):
        return tensor
    tensor = full_tensor(tensor)
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None)


def is_writer(tensors: Sequence[Tensor]) -> bool:
    """Whether this rank writes files for all ranks that hold parts of ``tensors``."""
    coordinates = [mesh.get_coordinate() for mesh in _meshes(tensors)]
    return all(not any(coordinate) for coordinate in coordinates if coordinate is not None)


def on_any_rank(flag: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether ``flag`` is true on any rank that holds a part of one of ``tensors``. Collective."""
    for mesh in _meshes(tensors):
        count = torch.tensor(float(flag), device=mesh.device_type)
        for dimension in range(mesh.ndim):
            dist.all_reduce(count, group=mesh.get_group(dimension))
        flag = bool(count)
    return flag


def sums_over_shards(counts: list[int], tensors: Sequence[Tensor]) -> list[int]:
    """Sum the counts that each rank made in its part of each tensor. Collective."""
    if not any(is_sharded(tensor) for tensor in tensors):
        return counts
    from torch.distributed.tensor import DTensor, Partial

    sums = []
    for count, tensor in zip(counts, tensors, strict=True):
        if is_sharded(tensor):
            mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
            part = torch.tensor(count, device=mesh.device_type)
            # FSDP2 on top of tensor parallel has a placement that is_shard() does not know.
            how = [placed if placed.is_replicate() else Partial() for placed in placements]
            count = int(DTensor.from_local(part, mesh, how, run_check=False).full_tensor())
        sums.append(count)
    return sums


def _meshes(tensors: Sequence[Tensor]) -> list[Any]:
    """Return the meshes over which ``tensors`` are sharded, in the same order on every rank."""
    meshes = {tensor.device_mesh for tensor in tensors if is_sharded(tensor)}  # type: ignore[attr-defined]
    return sorted(meshes, key=lambda mesh: mesh.mesh.flatten().tolist())
