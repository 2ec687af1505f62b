"""The state of an exchanged layer: its live weights, and the implementation that computes it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.gradients import GradientFlag
from sparseopt.speedup.kernels import LiveLists
from sparseopt.speedup.kernels.calls import live_values_if_masked, out_size
from sparseopt.speedup.kernels.ops import live_values, plain_call, scatter_values
from sparseopt.speedup.live_training.plan import DENSE, Choices, Implementation, nearest

__all__ = ["LayerState", "convolution_padding", "has_kernels"]

_DTYPES = (torch.float32, torch.bfloat16)
_MOST_CHANNELS = 1 << 20
_MOST_TAPS = 1 << 12
_BY_KERNELS = {"live", "full"}


def convolution_padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """Return the zeros on both sides of the map; ``None`` where the sides differ."""
    if not isinstance(module.padding, str):
        return module.padding[0], module.padding[1]
    if module.padding == "valid":
        return 0, 0
    around = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(zeros % 2 for zeros in around) else (around[0] // 2, around[1] // 2)


def has_kernels(module: nn.Module) -> bool:
    """Whether the kernels can compute ``module``."""
    weight = module._parameters.get("weight")
    if weight is None or max(weight.shape[:2]) > _MOST_CHANNELS:
        return False
    if isinstance(module, nn.Conv2d):
        return (
            module.groups == 1
            and module.padding_mode == "zeros"
            and convolution_padding(module) is not None
            and math.prod(module.kernel_size) <= _MOST_TAPS
        )
    return isinstance(module, nn.Linear)


class LayerState:
    """The state of one exchanged convolution or linear layer.

    Args:
        module: the module.
        layer: its sparse layer; ``None`` if it has no mask.
        flag: whether ``backward()`` leaves gradients dense now.

    Attributes:
        choices: the implementation for each shape of the input; if empty, always "dense".
    """

    def __init__(
        self, module: nn.Conv2d | nn.Linear, layer: SparseLayer | None, flag: GradientFlag
    ) -> None:
        self.weight = module.weight
        self.layer = layer
        self.flag = flag
        self.choices: Choices = {}
        self._lists = _lists_for(module)
        self._masked: tuple[StorageWeakRef, int, int | None] | None = None
        self._shape = module.weight.shape
        self._geometry = _geometry(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Leave the state out of a copy, because the optimizer does not mask the copy's weights."""

    @property
    def is_sparse(self) -> bool:
        """Whether some weights are not live now."""
        return self.layer is not None and not self.layer.is_full

    def implementation(self, x: Any, module: nn.Module) -> Implementation:
        """Return the implementation that computes ``module(x)`` now."""
        if not self.choices or not self._can_be_exchanged(x, module):
            return DENSE
        chosen = self._choice(x)
        return DENSE if chosen in _BY_KERNELS and not self._takes(x) else chosen

    @property
    def uses_lists(self) -> bool:
        """Whether the kernels compute the layer for some shape."""
        return not _BY_KERNELS.isdisjoint(self.choices.values())

    @property
    def version(self) -> int | None:
        """The version of the mask in the lists."""
        return self._lists.version

    def refresh(self) -> LiveLists:
        """Return the lists of live weights, made again if the mask has changed."""
        layer = self.layer
        if layer is None or layer.is_full:
            if self._lists.version != -1:
                self._lists.update(torch.arange(self.weight.numel(), device="cpu"), -1)
        elif self._lists.version != layer.mask_version:
            self._lists.update(layer.positions(), layer.mask_version)
        return self._lists

    def values(self, weight: Tensor, x: Tensor) -> tuple[Tensor, LiveLists] | None:
        """Return the live weights and their lists; ``None`` if other weights are not zero.

        Compiled code can't check that. It assumes masked weights, which the optimizer guarantees.

        Args:
            weight: the weight.
            x: the input that is to be multiplied by it.
        """
        if torch.compiler.is_compiling():
            lists = self._lists
            return live_values(weight, lists.tensor, lists.layout), lists
        lists = self.refresh()
        if torch.is_grad_enabled() and weight.requires_grad:
            function: Any = _LiveValues
            # In these cases torch reads the weight in backward.
            is_read = weight.dim() == 4 or x.requires_grad
            values, is_masked = function.apply(weight, lists.tensor, lists.layout, self, is_read)
        else:
            values, is_masked = self.read(weight, lists.tensor, lists.layout)
        return (values, lists) if is_masked else None

    def read(self, weight: Tensor, lists: Tensor, layout: list[int]) -> tuple[Tensor, bool]:
        """Return the live weights, and whether all other weights are zero."""
        if self.is_sparse:
            return live_values_if_masked(weight.detach(), lists, layout)
        return live_values(weight, lists, layout), True

    def check_gradient_may_be_masked(self) -> None:
        """Raise if the next update reads gradients of dropped weights.

        Then forward passes are dense, so a live one was made before the last ``step()``.
        """
        layer = self.layer
        if self.flag.dense_gradients and layer is not None and not layer.is_full:
            raise RuntimeError(
                f"the forward pass of layer {layer.name!r} came before the last step(), and the "
                "next step reads gradients of dropped weights, which speed_up does not compute in "
                "other steps: call step() before the next forward pass, or train without "
                "speed_up()."
            )

    def note_masked(self, gradient: Tensor, version: int | None) -> None:
        """Note a masked gradient, before autograd adds other gradients.

        Args:
            gradient: the gradient, with zeros for all dropped weights.
            version: the version of the mask at the time of the forward pass.
        """
        self._masked = _memory(gradient), gradient._version, version

    def is_masked(self, gradient: Tensor) -> bool:
        """Whether ``gradient`` is the last noted gradient, unchanged. Each note serves once.

        A hook of the weight may have changed the gradient through ``.data``, which the version does
        not show.
        """
        noted, self._masked = self._masked, None
        if self.weight._backward_hooks:
            return False
        now = self.layer.mask_version if self.is_sparse and self.layer is not None else -1
        return noted == (_memory(gradient), gradient._version, now)

    def _choice(self, x: Tensor) -> Implementation:
        if len(self.choices) == 1:
            return next(iter(self.choices.values()))
        shape = tuple(x.shape)
        found = self.choices.get(shape)
        return nearest(self.choices, shape) if found is None else found

    def _can_be_exchanged(self, x: Any, module: nn.Module) -> bool:
        """Whether this call can run on live weights.

        It cannot while gradients are dense, if another tensor replaces the weight (such as an
        average), if the weight's shape, the module's geometry or one of its functions was changed,
        inside a transformation of torch such as ``vmap``, or if the kernels don't support the
        types. In each of these cases the result would be different.
        """
        if torch.compiler.is_compiling():
            # In evaluation, averaged weights may be swapped in, which are not masked.
            if torch.compiler.is_exporting() or not module.training:
                return False
        elif not plain_call((x,)):
            return False
        # With activation checkpointing, a pass without gradients is repeated with gradients, and
        # must draw the same random numbers in the same implementation.
        if self.flag.dense_gradients and (module.training or torch.is_grad_enabled()):
            return False
        weight = module._parameters.get("weight")
        return (
            weight is not None
            and weight is self.weight
            and weight.shape == self._shape
            and _fits(x, weight)
            and "_conv_forward" not in module.__dict__
            and _geometry(module) == self._geometry
        )

    def _takes(self, x: Tensor) -> bool:
        """Whether the kernels take this shape; if not, torch computes, or raises its own error."""
        layout = self._lists.layout
        if self.weight.dim() == 2:
            return x.dim() > 0 and x.shape[-1] == layout[1]
        return x.dim() == 4 and x.shape[1] == layout[1] and min(out_size(x.shape[2:], layout)) > 0


class _LiveValues(torch.autograd.Function):
    """Gathers live weights, and notes that their gradient is masked.

    If there is only one gradient, autograd gives it to the parameter unchanged. If autograd adds
    another gradient, the result is a new tensor, or this tensor with a higher version. So memory
    and version show whether the parameter's gradient is still the masked one.

    The gathered values stay the same when the weight changes. So the weight itself is saved where
    torch would save it: if it has changed before the backward pass, autograd raises its error.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        lists: Tensor,
        layout: list[int],
        state: LayerState,
        is_read: bool,
    ) -> tuple[Tensor, bool]:
        ctx.save_for_backward(lists, *([weight] if is_read else []))
        ctx.layout, ctx.state, ctx.version = layout, state, state.version
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        ctx.channels_last = (
            weight.dim() == 4
            and weight.is_contiguous(memory_format=torch.channels_last)
            and not weight.is_contiguous()
        )
        return state.read(weight, lists, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        lists, *_ = ctx.saved_tensors
        ctx.state.check_gradient_may_be_masked()
        dense = scatter_values(grad, lists, ctx.layout, ctx.shape, ctx.dtype, ctx.channels_last)
        ctx.state.note_masked(dense, ctx.version)
        return dense, None, None, None, None


def _lists_for(module: nn.Conv2d | nn.Linear) -> LiveLists:
    """Return lists for the module's weight; the caller has to fill them by its mask."""
    if not has_kernels(module):
        # The lists are never used then, and may not support the module's shape.
        return LiveLists((1, 1))
    if isinstance(module, nn.Linear):
        return LiveLists(module.weight.shape)
    padding = convolution_padding(module)
    assert padding is not None
    return LiveLists(
        module.weight.shape, stride=module.stride, padding=padding, dilation=module.dilation
    )


def _memory(tensor: Tensor) -> StorageWeakRef:
    """Return a reference that, unlike an address, never equals one to a later tensor's memory."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    """Return what a convolution computes with besides its weight and its bias."""
    if not isinstance(module, nn.Conv2d):
        return ()
    return module.stride, module.padding, module.dilation, module.groups, module.padding_mode


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels support this device and these number formats."""
    if x.device.type != "cpu" or weight.device.type != "cpu":
        return False
    if x.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == weight.dtype
