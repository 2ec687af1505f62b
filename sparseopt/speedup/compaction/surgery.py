"""Cuts the parameters and buffers of a copy of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.speedup.compaction.fewer_heads import FewerHeads, with_fewer_heads
from sparseopt.speedup.compaction.removal import Fold
from sparseopt.utils.hooks import copy_without_hooks

__all__ = ["Kept", "cut", "put_sizes_back", "resize", "shrunk", "sizes_of"]

#: The positions that stay, ascending, for each dimension that becomes smaller, by tensor name.
Kept = Mapping[str, Mapping[int, Tensor]]

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: The attributes that :func:`resize` may change.
_SIZES: Final = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_parameters",
    "embedding_dim",
    "nx",
    "nf",
    "num_heads",
    "_qkv_same_embed_dim",
    "use_nested_tensor",
)
_CLASS: Final = "__class__"


def cut(model: nn.Module, kept: Kept, folds: list[Fold]) -> nn.Module:
    """Return a copy of ``model`` with parameters and buffers cut, and constants in biases.

    The copy has neither gradients nor the optimizer's hooks.
    """
    smaller = _copy(model)
    kept = {**kept, **_fold(smaller, folds, kept)}
    replaced: dict[Tensor, Tensor] = {}
    for path, module in smaller.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                full_name = f"{path}.{name}" if path else name
                if full_name in kept:
                    replaced[tensor] = _like(tensor, shrunk(tensor.detach(), kept[full_name]))
    for module in smaller.modules():
        changed = False
        for own in (module._parameters, module._buffers):
            for name, tensor in list(own.items()):
                if tensor is not None and tensor in replaced:
                    own[name] = replaced[tensor]  # type: ignore[assignment]
                    changed = True
        if changed:
            resize(module)
    for encoder in encoders_in(smaller):
        resize(encoder)
    return smaller


def encoders_in(model: nn.Module) -> list[nn.Module]:
    """Return the modules that check their layers for torch's fast path; see :func:`resize`."""
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]


def shrunk(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Return a tensor with only the positions ``kept`` by dimension, in its memory format."""
    result = tensor
    for dim, positions in kept.items():
        result = result.index_select(dim, positions.to(tensor.device))
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if memory_format is torch.channels_last else 5
        if tensor.dim() == rank and not tensor.is_contiguous():
            return result.contiguous(memory_format=memory_format)
    return result.contiguous()


def _copy(model: nn.Module) -> nn.Module:
    smaller = copy_without_hooks(model)
    for parameter in smaller.parameters():
        parameter.grad = None
    return smaller


@torch.no_grad()
def _fold(model: nn.Module, folds: list[Fold], kept: Kept) -> dict[str, Mapping[int, Tensor]]:
    """Add constants to biases, and return the positions to keep in biases that are new."""
    new: dict[str, Mapping[int, Tensor]] = {}
    for fold in folds:
        path = fold.weight.rpartition(".")[0]
        module = model.get_submodule(path)
        weight = module.get_parameter("weight")
        # On the CPU, because not every device has double precision.
        columns = weight.cpu().index_select(1, fold.columns).double()
        added = columns.reshape(*columns.shape[:2], -1).sum(2) @ fold.values
        if module._parameters["bias"] is None:
            bias = nn.Parameter(weight.new_zeros(len(added)))
            module.register_parameter("bias", bias)
            if 0 in kept.get(fold.weight, {}):
                new[f"{path}.bias" if path else "bias"] = {0: kept[fold.weight][0]}
        module.get_parameter("bias").add_(added.to(weight.dtype).to(weight.device))
    return new


def _like(tensor: Tensor, smaller: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    return smaller


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that describe its size, before :func:`resize`.

    The sizes can't be read off the full tensors later: from a convolution with one group left, the
    old number of groups is not known.
    """
    own = vars(module)
    return {_CLASS: type(module), **{name: own[name] for name in _SIZES if name in own}}


def put_sizes_back(module: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Undo :func:`resize`, with the attributes that :func:`sizes_of` returned before it."""
    sizes = dict(sizes)
    module.__class__ = sizes.pop(_CLASS)
    vars(module).update(sizes)


def resize(module: nn.Module) -> None:
    """Adapt the attributes of a torch module that describe its size to its cut tensors."""
    if isinstance(module, _CONVOLUTIONS):
        per_group = module.out_channels // module.groups
        module.out_channels = module.weight.shape[0]
        if module.groups > 1:
            module.groups = module.out_channels // per_group
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _TRANSPOSED):
        per_group = module.in_channels // module.groups
        module.in_channels = module.weight.shape[0]
        if module.groups > 1:
            module.groups = module.in_channels // per_group
        module.out_channels = module.weight.shape[1] * module.groups
    elif type(module) is nn.MultiheadAttention:
        with_fewer_heads(module)
    elif isinstance(module, nn.TransformerEncoder):
        # The encoder turns padded batches into nested tensors, which need torch's fast path.
        if any(isinstance(inner, FewerHeads) for inner in module.modules()):
            module.use_nested_tensor = False
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensors = (module.weight, module.running_mean)
        module.num_features = next(len(tensor) for tensor in tensors if tensor is not None)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif type(module).__name__ == "Conv1D":
        # Conv1D of transformers is a linear layer with a transposed weight.
        module.nx, module.nf = module.weight.shape  # type: ignore[misc, assignment]
