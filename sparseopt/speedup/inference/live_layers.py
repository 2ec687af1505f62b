"""Layers for inference on live weights only, by the kernels.

Their weights are buffers: the values of the live weights, and lists of their positions. A BatchNorm
after the layer is folded into values and bias. The kernel also adds a residual, and computes ReLU
or ReLU6. Under autocast the layers compute in the number format of the values, and their results
have the number format that results of torch's layers have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseopt.speedup.inference.sparse_linear import autocast_type
from sparseopt.speedup.kernels import LiveLists, calls, inference_ops
from sparseopt.speedup.live_training.layer_state import convolution_padding
from sparseopt.speedup.live_training.layout import to_kernel_layout

__all__ = [
    "Bounds",
    "InKernelLayout",
    "LiveConv2d",
    "LiveLayer",
    "LiveLinear",
    "NormStatistics",
    "Origin",
    "result_of_sample",
]

#: The bounds that results are clamped to: (0, inf) is ReLU, (0, 6) is ReLU6.
Bounds = tuple[float, float] | None


@dataclass(frozen=True)
class Origin:
    """The names, in the model, of the parameters and the BatchNorm that a layer is made of.

    Attributes:
        weight: the name of the weight.
        bias: the name of the bias, or ``None``.
        norm: the name of the BatchNorm that is folded in, or ``None``.
        eps: the number that the BatchNorm adds to the variance.
    """

    weight: str
    bias: str | None
    norm: str | None = None
    eps: float = 0.0


@dataclass(frozen=True)
class NormStatistics:
    """A BatchNorm in inference: ``x * factor + shift``, each (channels,)."""

    factor: Tensor
    shift: Tensor

    @classmethod
    def of(
        cls,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> NormStatistics:
        """Compute factor and shift, in float64 if the statistics are float64, else in float32."""
        dtype = torch.promote_types(variance.dtype, torch.float32)
        factor = (variance.to(dtype) + eps).rsqrt()
        if weight is not None:
            factor = factor * weight.to(dtype)
        shift = -mean.to(dtype) * factor
        return cls(factor, shift if bias is None else shift + bias.to(dtype))

    def fold_into(self, bias: Tensor | None) -> Tensor:
        """Return the bias of a layer with this BatchNorm folded into it."""
        if bias is None:
            return self.shift
        return bias.to(self.factor.dtype) * self.factor + self.shift


class LiveLayer(nn.Module):
    """The base of sparse convolutions and linear layers: values, lists, bias.

    Args:
        shape: the shape of the dense weight.
        lists: lists for this shape, without live weights yet.
        dtype: the number format of the values: float32 or bfloat16.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
    """

    def __init__(
        self,
        shape: torch.Size,
        lists: LiveLists,
        dtype: torch.dtype,
        origin: Origin,
        bounds: Bounds = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layout = lists.layout
        self.origin = origin
        self.bounds = bounds
        self.values: Tensor
        self.lists: Tensor
        self.bias: Tensor | None
        self.register_buffer("values", torch.empty(0, dtype=dtype))
        self.register_buffer("lists", lists.tensor)
        self.register_buffer("bias", None)

    def set_weights(
        self,
        positions: Tensor,
        values: Tensor,
        bias: Tensor | None,
        norm: NormStatistics | None = None,
    ) -> None:
        """Replace the live weights and the bias.

        Args:
            positions: positions of the live weights in the flattened weight: 1-D, integers,
                ascending.
            values: the values of the live weights, 1-D.
            bias: (out,), or ``None``.
            norm: the BatchNorm to fold into values and bias.

        Raises:
            ValueError: if the positions are not ascending, or outside the weight.
        """
        stride, padding, dilation = self.layout[4:6], self.layout[6:8], self.layout[8:10]
        lists = LiveLists(self.shape, stride=stride, padding=padding, dilation=dilation)
        lists.update(positions, 1)
        values = values.detach().float()
        bias = None if bias is None else bias.detach().float()
        if norm is not None:
            of_output = self.shape.numel() // self.shape[0]
            values = values * norm.factor[positions // of_output]
            bias = norm.fold_into(bias)
        # A tensor from a file may be a view of the mapped file, so the values are copied.
        self.values = values.to(self.values.dtype, copy=True)
        self.lists = lists.tensor
        self.bias = None if bias is None else bias.clone()

    def extra_repr(self) -> str:
        """Return the text between the brackets of the layer's ``repr()``."""
        after = "" if self.bounds is None else f", bounds={self.bounds}"
        return f"{tuple(self.shape)}, live={len(self.values)}{after}"


def result_of_sample(layer: nn.Module, input: Tensor, residual: Tensor | None) -> Tensor:  # noqa: A002
    """Return the result of a convolution for one sample (C, H, W) without a batch dimension."""
    if residual is not None and residual.dim() == 3:
        residual = residual.unsqueeze(0)
    y: Tensor = layer(input.unsqueeze(0), residual)
    return y.squeeze(0)


class LiveConv2d(LiveLayer):
    """A convolution that returns maps in the kernels' layout.

    Args:
        module: the convolution, which the kernels have to support.
        dtype: the number format of the values.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
    """

    def __init__(
        self, module: nn.Conv2d, dtype: torch.dtype, origin: Origin, bounds: Bounds = None
    ) -> None:
        padding = convolution_padding(module)
        assert padding is not None
        lists = LiveLists(
            module.weight.shape, stride=module.stride, padding=padding, dilation=module.dilation
        )
        super().__init__(module.weight.shape, lists, dtype, origin, bounds)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return (N, out, H', W') for (N, C, H, W); a residual has the shape of the result."""
        if input.dim() == 3:
            return result_of_sample(self, input, residual)
        values = self.values
        y = self._product(input, values, residual)
        dtype = autocast_type(input, values)
        if dtype is None:
            return y
        return y.to(dtype if residual is None else torch.promote_types(dtype, residual.dtype))

    def _product(self, input: Tensor, values: Tensor, residual: Tensor | None) -> Tensor:  # noqa: A002
        x = to_kernel_layout(calls.converted(input, values.dtype))
        weights = (values, self.bias, self.lists, self.layout)
        if residual is not None:
            size = calls.out_size(x.shape[2:], self.layout)
            if residual.shape != (x.shape[0], self.layout[0], *size):
                # The residual broadcasts. Its shape equalled the result's in the example inputs.
                y = inference_ops.conv2d(x, *weights, None, None)
                y = y + residual.to(y.dtype)
                return y if self.bounds is None else y.clamp(*self.bounds)
            residual = to_kernel_layout(residual.to(values.dtype))
        return inference_ops.conv2d(x, *weights, residual, self.bounds)


class InKernelLayout(nn.Module):
    """Converts a map to the kernels' layout, unless the map has it already."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the same map."""
        return to_kernel_layout(input) if input.dim() == 4 else input


class LiveLinear(LiveLayer):
    """A linear layer.

    Args:
        shape: the shape of the weight, (out, in).
        dtype: the number format of the values.
        origin: the names of the parameters that the layer is made of.
        bounds: the bounds that the result is clamped to.
    """

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, origin: Origin, bounds: Bounds = None
    ) -> None:
        super().__init__(shape, LiveLists(shape), dtype, origin, bounds)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (..., out) for (..., in)."""
        values = self.values
        x = calls.converted(input, values.dtype)
        y = inference_ops.linear(x, values, self.bias, self.lists, self.layout, self.bounds)
        dtype = autocast_type(input, values)
        return y if dtype is None else y.to(dtype)
