"""Modules and parameter names without the wrappers of distributed training and compilation."""

from __future__ import annotations

from typing import Final

from torch import nn

__all__ = ["canonical_name", "unwrapped"]

#: What torch.compile and FSDP insert into names, at each module that they wrap.
WRAPPED_MODULES: Final = ("_orig_mod", "_fsdp_wrapped_module")
#: What DistributedDataParallel, AveragedModel and Opacus's GradSampleModule put before names.
WRAPPED_ROOTS: Final = ("module", "_module")


def canonical_name(name: str) -> str:
    """Return a parameter's name without the parts that wrappers add.

    Example:
        >>> canonical_name("module._orig_mod.conv1.weight")
        'conv1.weight'
    """
    path = [part for part in name.split(".") if part not in WRAPPED_MODULES]
    while len(path) > 1 and path[0] in WRAPPED_ROOTS:
        del path[0]
    return ".".join(path)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and torch.compile.

    A forward pass of DistributedDataParallel would wait for the other ranks, and a compiled model
    hides its operations.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model
