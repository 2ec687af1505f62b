"""The classes that modules have while a speed-up lasts.

Only the class of a module is exchanged. The module stays the same object, with the same parameters,
buffers and hooks. The state that the new class needs is in the module itself, and refers to no
other module. A copy or a pickle of the module has its original class, because the optimizer does
not mask the copy's weights.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from sparseopt.speedup.kernels import ops
from sparseopt.speedup.kernels.batch_norm import batch_norm, knows_batch_norm
from sparseopt.speedup.kernels.batch_norm import relu as relu_of_normalised
from sparseopt.speedup.kernels.calls import kernel_layout
from sparseopt.speedup.kernels.ops import plain_call
from sparseopt.speedup.live_training.concatenation import outside_of_mode
from sparseopt.speedup.live_training.dropout import drop_entries
from sparseopt.speedup.live_training.layer_state import LayerState
from sparseopt.speedup.live_training.layout import (
    by_channel,
    from_channels,
    in_kernel_layout,
    to_channels_last,
    to_kernel_layout,
)

__all__ = ["LIVE_CLASSES", "STATE", "Exchanged", "exchange", "put_back"]

#: The attribute of a module that holds its :class:`LayerState`.
STATE: Final = "_sparseopt_live"
#: torch.fx calls modules of torch.nn, and traces the code of all others.
_PACKAGE: Final = {"__module__": "torch.nn"}
_ADDED: Final = frozenset({STATE, *_PACKAGE})


class Exchanged:
    """A module whose class was exchanged.

    Attributes:
        plain: the module's original class.
    """

    plain: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name not in _ADDED}
        return object.__new__, (self.plain,), state


class LiveConv2d(Exchanged, nn.Conv2d):
    """A convolution. Its result is in the kernels' layout, unless it runs as plain torch."""

    plain = nn.Conv2d

    @outside_of_mode
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        state: LayerState | None = self.__dict__.get(STATE)
        implementation = "dense" if state is None else state.implementation(input, self)
        if state is None or implementation == "dense" or input.dim() != 4:
            return super().forward(input)
        if implementation in {"live", "full"}:
            found = state.values(self.weight, input)
            if found is not None:
                values, lists = found
                x = kernel_layout(_autocast(input))
                return ops.conv2d(x, values, self.bias, lists.tensor, lists.layout)
        elif implementation == "product":
            return _product(input, self)
        return to_kernel_layout(super().forward(to_channels_last(input)))


class LiveLinear(Exchanged, nn.Linear):
    """A linear layer."""

    plain = nn.Linear

    @outside_of_mode
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        state: LayerState | None = self.__dict__.get(STATE)
        found = None
        if state is not None and state.implementation(input, self) == "live":
            found = state.values(self.weight, input)
        if found is None:
            return super().forward(input)
        values, lists = found
        return ops.linear(_autocast(input), values, self.bias, lists.tensor, lists.layout)


class ByChannelBatchNorm2d(Exchanged, nn.BatchNorm2d):
    """Batch normalisation of maps in the kernels' layout, in training by a kernel of its own.

    Where the kernel can't be used, torch computes on a view of the map as (1, C, HW, N).
    """

    plain = nn.BatchNorm2d

    @outside_of_mode
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not in_kernel_layout(input):
            return super().forward(input)
        batch, channels, height, width = input.shape
        of_channels = (self.weight, self.bias, self.running_mean, self.running_var)
        fits = self.training and channels == self.num_features
        if fits and knows_batch_norm(input, *of_channels):
            return self._by_kernel(input)
        normalised = super().forward(by_channel(input))
        return from_channels(normalised, (batch, channels, height, width))

    def _by_kernel(self, x: Tensor) -> Tensor:
        """Normalise by the kernel, and update running statistics as torch does."""
        y, mean, variance = batch_norm(x, self.weight, self.bias, self.eps)
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return y
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # momentum=None means the average over all batches
                share = 1 / float(self.num_batches_tracked)
        with torch.no_grad():
            self.running_mean.lerp_(mean, share or 0.0)
            self.running_var.lerp_(variance, share or 0.0)
        return y


class ReluOfNormalised(Exchanged, nn.ReLU):
    """ReLU. For a map that the kernel normalised, one backward pass serves both."""

    plain = nn.ReLU

    @outside_of_mode
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        found = None
        if not torch.compiler.is_compiling():
            found = relu_of_normalised(input, inplace=self.inplace)
        return super().forward(input) if found is None else found


class _ByChannelPool(Exchanged):
    """Pooling that sees a map in the kernels' layout as (C, N, H, W) in channels-last format."""

    @outside_of_mode
    def forward(self, input: Tensor) -> Any:  # noqa: A002
        plain: Any = super()
        if not in_kernel_layout(input):
            return plain.forward(input)
        pooled = plain.forward(input.permute(1, 0, 2, 3))
        if isinstance(pooled, tuple):  # with the indices of the maxima
            return tuple(part.permute(1, 0, 2, 3) for part in pooled)
        return pooled.permute(1, 0, 2, 3)


class ByChannelMaxPool2d(_ByChannelPool, nn.MaxPool2d):
    """Max pooling."""

    plain = nn.MaxPool2d


class ByChannelAvgPool2d(_ByChannelPool, nn.AvgPool2d):
    """Average pooling."""

    plain = nn.AvgPool2d


class ByChannelAdaptiveAvgPool2d(_ByChannelPool, nn.AdaptiveAvgPool2d):
    """Average pooling to a size."""

    plain = nn.AdaptiveAvgPool2d


class FastDropout(Exchanged, nn.Dropout):
    """Dropout that draws cheaper random numbers for maps in the kernels' layout."""

    plain = nn.Dropout

    @outside_of_mode
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        is_fast = (
            self.training
            and 0 < self.p < 1
            and not torch.compiler.is_compiling()
            and plain_call((input,))
            and in_kernel_layout(input)
        )
        if not is_fast:
            return super().forward(input)
        return drop_entries(input, self.p, inplace=self.inplace)


#: The new class for each original class. Subclasses are left out: they may compute otherwise.
LIVE_CLASSES: Final[dict[type[nn.Module], type[nn.Module]]] = {
    live.plain: live
    for live in (
        LiveConv2d,
        LiveLinear,
        ByChannelBatchNorm2d,
        ReluOfNormalised,
        ByChannelMaxPool2d,
        ByChannelAvgPool2d,
        ByChannelAdaptiveAvgPool2d,
        FastDropout,
    )
}


def exchange(module: nn.Module, state: LayerState | None) -> None:
    """Give a module the new class for its class in :data:`LIVE_CLASSES`."""
    if state is not None:
        vars(module)[STATE] = state
    vars(module).update(_PACKAGE)
    module.__class__ = LIVE_CLASSES[type(module)]


def put_back(module: nn.Module) -> None:
    """Restore the original class of a module, if it was exchanged."""
    for name in _ADDED:
        vars(module).pop(name, None)
    # A parametrization may have made a subclass of the exchanged class. It stays.
    if isinstance(module, Exchanged) and type(module) in LIVE_CLASSES.values():
        plain: type = module.plain
        module.__class__ = plain


def _autocast(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else x


def _product(x: Tensor, module: nn.Conv2d) -> Tensor:
    """Return a convolution with kernels of one pixel, computed as a product of matrices."""
    if module.stride != (1, 1):
        x = x[:, :, :: module.stride[0], :: module.stride[1]]
    x = kernel_layout(x)
    batch, channels, height, width = x.shape
    columns = x.permute(1, 2, 3, 0).reshape(channels, -1)
    matrix = module.weight.flatten(1)
    if module.bias is None:
        rows = torch.mm(matrix, columns)
    else:
        rows = torch.addmm(module.bias[:, None], matrix, columns)
    return from_channels(rows, (batch, len(rows), height, width))
