"""The networks that are trained."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import SMALL_DENSE
from benchmarks.cifar.models.resnet import ResNet
from benchmarks.cifar.models.wide_resnet import WideResNet, small_dense_scale

__all__ = ["ResNet", "WideResNet", "build_model", "full_model", "small_dense_scale"]


def build_model(protocol: Protocol, spec: RunSpec, num_classes: int) -> nn.Module:
    """The run's network, with initial weights that depend on the global random state only."""
    scale = 1.0
    if spec.method == SMALL_DENSE:
        assert spec.density is not None
        scale = small_dense_scale(spec.density)
    config = protocol.model
    model: nn.Module
    if config.kind == "wrn":
        model = WideResNet(config.depth, config.width, config.dropout, num_classes, scale)
    else:
        model = ResNet(config.depth, config.width, num_classes, scale)
    channels_last = protocol.training.channels_last
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def full_model(protocol: Protocol, num_classes: int) -> nn.Module:
    """The dense network of a protocol; the global random state is left as it is."""
    with torch.random.fork_rng(devices=[]):
        return build_model(protocol, RunSpec("dense", None, None, 0), num_classes)
