"""Parameters, FLOPs and mask updates of runs, and figures that depend on a network's shapes only.

FLOPs are counted as in the report's supplement, section 2: convolutions and linear layers, per
image. A dense training step costs three inferences.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import IMAGE_SIZE
from benchmarks.cifar.methods import SMALL_DENSE
from benchmarks.cifar.models import full_model
from sparseopt import (
    ChannelGroup,
    SparseLayer,
    SparseOptimizer,
    count_flops,
    find_channel_groups,
)
from sparseopt.distributions import get_distribution

if TYPE_CHECKING:
    from benchmarks.cifar.train import Run


def count(run: Run) -> dict[str, Any]:
    """The costs of a run for the results file, in plain numbers.

    Returns:
        ``parameters`` (total and live), ``flops`` per image of the run and of the full dense
        network, and ``updates``, ``layers`` and ``history``, which are None for dense methods.
    """
    image = next(iter(run.splits.test.in_order(1)))[0]
    total = sum(parameter.numel() for parameter in run.model.parameters())
    masks: dict[str, Any] = {"updates": None, "layers": None, "history": None}
    dropped = 0
    if isinstance(run.optimizer, SparseOptimizer):
        report = run.optimizer.flops(run.model, image)
        dropped = sum(layer.numel - layer.live for layer in run.optimizer.layers)
        masks = _masks(run.optimizer)
    else:
        report = count_flops(run.model, image)
    full = report
    if run.spec.method == SMALL_DENSE:
        full = count_flops(full_model(run.protocol).to(image.device), image)
    return {
        "parameters": {"total": total, "live": total - dropped},
        "flops": {
            "inference": report.inference_sparse,
            "train": report.train_sparse,
            "train_measured": report.train_measured,
            "dense_inference": full.inference_dense,
            "dense_train": full.train_dense,
        },
        **masks,
    }


@functools.cache
def channels_of(protocol: Protocol) -> tuple[ChannelGroup, ...]:
    """The channel groups of the full network, for methods that drop entire channels."""
    # BatchNorm needs more than one image.
    images = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    return tuple(find_channel_groups(full_model(protocol), images))


@functools.cache
def matched_density(protocol: Protocol, other: str, init: str, density: float) -> float:
    """The density at which ``init`` costs as many inference FLOPs as ``other`` does at ``density``.

    The density is rounded to four digits, because it is part of a run's name.
    """
    wanted = _flops_at(protocol, other, density)
    low, high = 0.0, 1.0
    # FLOPs rise with the density, but not linearly: ERK makes layers full one after the other.
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _flops_at(protocol, init, middle) < wanted:
            low = middle
        else:
            high = middle
    return round(high, 4)


def _flops_at(protocol: Protocol, init: str, density: float) -> float:
    layers = _dense_layers(protocol)
    shapes = {name: shape for name, shape, _ in layers}
    densities = get_distribution(init)(shapes, density)
    return sum(densities[name] * flops for name, _, flops in layers)


@functools.cache
def _dense_layers(protocol: Protocol) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Name, shape and dense FLOPs of each weight that can be sparse."""
    model = full_model(protocol)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    report = count_flops(model, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    return tuple((layer.name, shapes[layer.name], layer.dense) for layer in report.layers)


def _masks(optimizer: SparseOptimizer) -> dict[str, Any]:
    made = [record for record in optimizer.history if not record.skipped]
    ever_live = SparseLayer.ever_live_counts(optimizer.layers)
    return {
        "updates": {
            "count": len(made),
            "skipped": len(optimizer.history) - len(made),
            "explored": made[-1].explored if made else optimizer.density,
        },
        "layers": [
            {"name": layer.name, "numel": layer.numel, "live": layer.live, "ever_live": ever}
            for layer, ever in zip(optimizer.layers, ever_live, strict=True)
        ],
        "history": [dataclasses.asdict(record) for record in optimizer.history],
    }
