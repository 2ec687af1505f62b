"""Modules and parameter names inside what distributed training and compilation wrap around them."""

from __future__ import annotations

from typing import Final

from torch import nn

__all__ = ["canonical_name", "unwrapped"]

#: What torch.compile and FSDP put into names, at whatever module they wrap.
WRAPPED_MODULES: Final = ("_orig_mod", "_fsdp_wrapped_module")
#: What DistributedDataParallel and AveragedModel put before names, and Opacus's GradSampleModule.
WRAPPED_ROOTS: Final = ("module", "_module")


def canonical_name(name: str) -> str:
    """Strip what wrappers put into a parameter's name.

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

    The one would wait for the other ranks, the other hide the operations.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model
