"""Densities at which two distributions cost the same."""

from __future__ import annotations

import functools

import torch

from benchmarks.cifar.models.networks import build_model
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.running.accounting import dense_flops
from sparseopt.distributions import DISTRIBUTIONS

Layers = tuple[tuple[str, tuple[int, ...], float], ...]


@functools.cache
def matched_density(
    protocol: Protocol, init: str, other: str, density: float, classes: int
) -> float:
    """The density at which ``init`` costs as many inference FLOPs as ``other`` does at ``density``.

    Rounded to four digits, as it is part of a run's name.

    Args:
        protocol: Says which network.
        init: The distribution whose density is wanted.
        other: The distribution to match.
        density: Its density.
        classes: Of the images, which the last layer depends on.
    """
    layers = _layers(protocol, classes)
    wanted = _flops(layers, other, density)
    low, high = 0.0, 1.0
    # FLOPs rise with the density, but not evenly: ERK makes layers full one after the other.
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _flops(layers, init, middle) < wanted:
            low = middle
        else:
            high = middle
    return round(high, 4)


def _flops(layers: Layers, init: str, density: float) -> float:
    densities = DISTRIBUTIONS[init]({name: shape for name, shape, _ in layers}, density)
    return sum(densities[name] * flops for name, _, flops in layers)


@functools.cache
def _layers(protocol: Protocol, classes: int) -> Layers:
    """Name, shape and dense FLOPs of each weight that can be sparse."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(protocol, RunSpec("dense", None, None, 0), classes)
    image = torch.zeros(1, 3, protocol.image_size, protocol.image_size)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    report = dense_flops(model, image)
    return tuple((layer.name, shapes[layer.name], layer.dense) for layer in report.layers)
