"""Dense layers for inference by oneDNN, and the BatchNorms and pooling layers between layers.

The first call converts weights to oneDNN's own layout. A BatchNorm after the layer is folded into
its weights. A residual is added in the same pass, and ReLU or ReLU6 are computed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseopt.speedup import kernels
from sparseopt.speedup.inference.live_layers import (
    Bounds,
    NormStatistics,
    Origin,
    result_of_sample,
)
from sparseopt.speedup.inference.sparse_linear import autocast_type
from sparseopt.speedup.kernels import calls, inference_ops
from sparseopt.speedup.kernels.ops import plain_call
from sparseopt.speedup.live_training.layer_state import convolution_padding
from sparseopt.speedup.live_training.layout import in_kernel_layout, to_channels_last
from sparseopt.speedup.timing import time_briefly

__all__ = ["Affine", "DenseConv2d", "DenseLayer", "DenseLinear", "KernelLayoutPool"]


class DenseLayer(nn.Module):
    """The base of dense convolutions and linear layers: weight, bias, and the packed weight.

    Args:
        dtype: the number format of the weight.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
        device: the device of the weight.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        origin: Origin,
        bounds: Bounds = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.origin = origin
        self.bounds = bounds
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=device))
        self.register_buffer("bias", None)
        # The address and version of the weight, and the packed weight that was made of it.
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def set_weights(
        self, weight: Tensor, bias: Tensor | None, norm: NormStatistics | None = None
    ) -> None:
        """Set weight and bias, with a BatchNorm folded into both."""
        dtype = self.weight.dtype
        weight = weight.detach()
        bias = None if bias is None else bias.detach()
        if norm is not None:
            wide = norm.factor.dtype
            weight = weight.to(wide) * norm.factor.view(-1, *(1,) * (weight.dim() - 1))
            bias = norm.fold_into(bias)
        device = self.weight.device
        self.weight = weight.to(device, dtype, copy=True)
        self.bias = None if bias is None else bias.to(device, dtype, copy=True)
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _is_packable(self, *inputs: Tensor | None) -> bool:
        """Whether oneDNN's own operators can be called, which have no derivatives."""
        weight = self.weight
        if weight.device.type != "cpu" or not plain_call(inputs):
            return False
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            return False
        if any(x is not None and x.dtype != weight.dtype for x in inputs):
            return False
        if torch.is_autocast_enabled("cpu") and weight.dtype != torch.get_autocast_dtype("cpu"):
            return False
        if weight.dtype == torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

    def _as_read(self, x: Tensor) -> Tensor:
        """Convert an input to the number format of autocast, if the weight has this format.

        Autocast itself does not convert inputs of oneDNN's own operators.
        """
        dtype = self.weight.dtype
        return x.to(dtype) if autocast_type(x, self.weight) == dtype else x

    def _packed_by(self, pack: Callable[[], Tensor]) -> Tensor:
        """Return the packed weight; pack the weight again after a write to it."""
        weight, packed = self.weight, self._packed
        state = weight.data_ptr(), -1 if weight.is_inference() else weight._version
        if packed is None or packed[0] != state:
            packed = self._packed = (state, pack())
        return packed[1]

    def _clamped(self, y: Tensor) -> Tensor:
        """Clamp a result of oneDNN in place. Unlike oneDNN's own ReLU, this keeps NaN."""
        if self.bounds is None:
            return y
        # relu_() takes less time than clamp_() with an infinite bound.
        return y.relu_() if self.bounds == (0.0, float("inf")) else y.clamp_(*self.bounds)


class DenseConv2d(DenseLayer):
    """A convolution that returns channels-last maps.

    Args:
        module: the convolution, with equal zero padding on opposite sides.
        dtype: the number format of the weight.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
    """

    def __init__(
        self, module: nn.Conv2d, dtype: torch.dtype, origin: Origin, bounds: Bounds = None
    ) -> None:
        super().__init__(dtype, origin, bounds, module.weight.device)
        padding = convolution_padding(module)
        assert padding is not None
        # In the order of the arguments of oneDNN's operators.
        self.geometry = (list(padding), list(module.stride), list(module.dilation), module.groups)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return (N, out, H', W') for (N, C, H, W); a residual has the shape of the result."""
        if input.dim() == 3:
            return result_of_sample(self, input, residual)
        x = _channels_last(self._as_read(input))
        residual = None if residual is None else _channels_last(residual)
        padding, stride, dilation, groups = self.geometry
        if self._is_packable(x, residual) and (
            residual is None or residual.shape == self._result_shape(x)
        ):
            return self._by_onednn(x, residual)
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = y if residual is None else y + residual
        return y if self.bounds is None else y.clamp(*self.bounds)

    def _result_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the result. A residual of another shape has to broadcast."""
        padding, stride, dilation, _ = self.geometry
        out, _, *kernel = self.weight.shape
        size = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
        )
        return (x.shape[0], out, *size)

    def _by_onednn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Compute convolution and addition in one call of oneDNN.

        The first call reorders the weight for the shape of its input, and later calls use the
        reordered weight.
        """
        packed = self._packed_by(
            lambda: torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, *self.geometry, list(x.shape)
            )
        )
        result: Tensor
        if residual is None:
            result = torch.ops.mkldnn._convolution_pointwise(
                x, packed, self.bias, *self.geometry, "none", [], ""
            )
        else:
            result = torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, packed, self.bias, *self.geometry, "add", 1.0, None, [], None
            )
        return self._clamped(result)


class DenseLinear(DenseLayer):
    """A linear layer.

    One token in float32 takes as long as reading the weight, and neither oneDNN nor torch read it
    as fast as memory allows on every processor. So the first call with one token times oneDNN
    against a product with the transposed weight, and keeps the faster one.

    Args:
        dtype: the number format of the weight.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
        device: the device of the weight.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (..., out) for (..., in)."""
        input = self._as_read(input)  # noqa: A001
        if not self._is_packable(input) or not input.numel():
            y = F.linear(input, self.weight, self.bias)
            return y if self.bounds is None else y.clamp(*self.bounds)
        x = input.contiguous()
        packed = self._packed_by(lambda: self._pack(x))
        if packed.is_mkldnn:
            return self._clamped(self._by_onednn(x, packed))
        if _tokens(x) == 1:
            return self._clamped(self._by_columns(x, packed))
        return self._clamped(F.linear(x, self.weight, self.bias))

    def _pack(self, x: Tensor) -> Tensor:
        """Return the weight in oneDNN's layout; for one token, transposed if that takes less."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight, _tokens(x))
        if _tokens(x) > 1 or self.weight.dtype != torch.float32:
            return packed
        columns = self.weight.t().contiguous()
        ways = {
            "oneDNN": lambda: self._by_onednn(x, packed),
            "columns": lambda: self._by_columns(x, columns),
        }
        seconds = time_briefly(ways, x.device)
        return columns if seconds["columns"] < seconds["oneDNN"] else packed

    def _by_onednn(self, x: Tensor, packed: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")
        return result

    def _by_columns(self, x: Tensor, columns: Tensor) -> Tensor:
        y = x @ columns
        return y if self.bias is None else y.add_(self.bias)


class Affine(nn.Module):
    """A BatchNorm in inference that could not be folded into a layer, and the ReLU after it.

    Args:
        norm: factor and shift of each channel.
        origin: ``origin.norm`` is the name of the BatchNorm in the model.
        bounds: the bounds that the result is clamped to.
    """

    def __init__(self, norm: NormStatistics, origin: Origin, bounds: Bounds = None) -> None:
        super().__init__()
        self.origin = origin
        self.bounds = bounds
        self.factor: Tensor
        self.shift: Tensor
        self.register_buffer("factor", norm.factor.clone())
        self.register_buffer("shift", norm.shift.clone())

    def set_norm(self, norm: NormStatistics) -> None:
        """Set factor and shift."""
        device = self.factor.device
        self.factor = norm.factor.to(device, copy=True)
        self.shift = norm.shift.to(device, copy=True)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (N, C, H, W) in the layout of the input."""
        by_kernel = (
            input.device.type == "cpu"
            and input.dim() == 4
            and input.dtype in calls.DTYPES
            and input.permute(1, 2, 3, 0).is_contiguous()
            and kernels.available()
        )
        if by_kernel:
            return inference_ops.affine(input, self.factor, self.shift, self.bounds)
        by_channel = (-1, 1, 1)
        factor, shift = self.factor.to(input.dtype), self.shift.to(input.dtype)
        y = torch.addcmul(shift.view(by_channel), input, factor.view(by_channel))
        return y if self.bounds is None else y.clamp(*self.bounds)


class KernelLayoutPool(nn.Module):
    """Pooling that keeps the kernels' layout.

    In memory, a map (N, C, H, W) in the kernels' layout is a channels-last map (C, N, H, W), which
    torch pools without a conversion.

    Args:
        pool: torch's module for pooling in two dimensions.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (N, C, H', W') for (N, C, H, W)."""
        result: Tensor
        if not in_kernel_layout(input) or getattr(self.pool, "return_indices", False):
            result = self.pool(input)
            return result
        result = self.pool(input.permute(1, 0, 2, 3))
        return result.permute(1, 0, 2, 3)


def _tokens(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _channels_last(x: Tensor) -> Tensor:
    if x.dim() != 4:
        return x
    if in_kernel_layout(x):
        return to_channels_last(x)
    return x.contiguous(memory_format=torch.channels_last)
