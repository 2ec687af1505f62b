"""Models with whole channels dropped, and the same layers built by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import densenet, resnet

from benchmarks.cifar.models import WideResNet
from sparseopt import find_channel_groups

IMAGE = (3, 32, 32)


def cifar_resnet50() -> nn.Module:
    """ResNet-50 with a 3x3 stem and 100 classes."""
    model = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return model


def cifar_densenet() -> nn.Module:
    """DenseNet-BC-100-12 for 32x32 images (Huang et al., CVPR 2017, section 3) and 10 classes."""
    model = densenet.DenseNet(12, (16, 16, 16), num_init_features=24, num_classes=10)
    stem = model.features
    stem.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    # torchvision's stem for larger images goes on with these.
    stem.norm0 = stem.relu0 = stem.pool0 = nn.Identity()
    return model


WORKLOADS: dict[str, Callable[[], nn.Module]] = {
    "wrn-22-2": lambda: WideResNet(22, 2),
    "cifar-resnet50": cifar_resnet50,
}


def channel_masks(model: nn.Module, density: float) -> dict[str, Tensor]:
    """Masks that drop random channels, ``sqrt(density)`` of each group staying.

    A dropped channel owns its filters and the columns that read it. So about ``density`` of the
    weights is left, as in Small-Dense.
    """
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for group in find_channel_groups(model, torch.randn(2, *IMAGE)):
        if group.blocked:
            continue
        stay = max(1, round(math.sqrt(density) * group.channels))
        dropped = torch.randperm(group.channels)[stay:]
        for part in group.slices_of("producer", "grouped", "consumer", "tied"):
            masks[part.name].index_fill_(part.dim, part.index[dropped].flatten(), False)
    return {name: mask for name, mask in masks.items() if mask.dim() > 1}


def built_by_hand(model: nn.Module) -> nn.Module:
    """Return a model like ``model``, with every layer built by its constructor."""
    built = copy.deepcopy(model)
    for path, module in model.named_modules():
        new = _constructed(module)
        if new is not None:
            parent, _, name = path.rpartition(".")
            setattr(built.get_submodule(parent), name, new)
    return built


def _constructed(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Conv2d):
        return nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            groups=module.groups,
            bias=module.bias is not None,
        )
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(module.num_features)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features)
    return None
