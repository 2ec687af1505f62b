"""The implementations of a layer: dense code, our kernels, other libraries' sparse layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common.formats import precisions_of
from benchmarks.speed.kernels.layers import Layer
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls

#: The timed passes of a layer: one forward pass, or one with the gradients of input and weight.
INFERENCE, TRAINING = "inference", "training"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = "kernels"
#: The parts of a training step with our kernels, in their order.
PARTS = ("gather", "forward", "input gradient", "weight gradient", "scatter")
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}

Forward = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """One call to time.

    Attributes:
        what: ``"inference"``, ``"training"``, or the name of a part of training.
        precision: The precision of all tensors; sums are always float32.
        implementation: The name of the library or code that computes.
        density: The share of weights in the computation; ``None`` for all weights.
        call: The call.
    """

    what: str
    precision: str
    implementation: str
    density: float | None
    call: Callable[[], Any]


def passes(forward: Forward, x: Tensor, weight: Tensor, training: bool) -> dict[str, Any]:
    """A layer's forward pass and, if asked for, the pass with both gradients.

    Args:
        forward: Computes the layer; gradients come from autograd.
        x: The input.
        weight: The tensor of the layer's weights, in its own format.
        training: Whether to compute the gradients too.
    """
    x, weight = x.detach(), weight.detach()

    @torch.no_grad()
    def inference() -> Tensor:
        return forward(x, weight)

    calls: dict[str, Any] = {INFERENCE: inference}
    if training:
        grad = torch.randn_like(inference())
        leaves = (x.requires_grad_(), weight.requires_grad_())
        calls[TRAINING] = lambda: torch.autograd.grad(forward(*leaves), leaves, grad)
    return calls


def dense(layer: Layer, training: bool) -> Iterator[Contender]:
    """All dense implementations in both precisions; the fastest of each precision counts."""
    for precision, dtype in PRECISIONS.items():
        x, weight = _tensors(layer, dtype)
        if layer.is_linear:
            name = "F.linear"
            yield from _contenders(passes(F.linear, x, weight, training), precision, name)
            yield from _packed(layer, x, weight, precision)
            continue
        for name, memory_format in FORMATS.items():
            placed = (one.contiguous(memory_format=memory_format) for one in (x, weight))
            found = passes(_dense_convolution(layer), *placed, training)
            yield from _contenders(found, precision, name)


def ours(layer: Layer, density: float, training: bool, parts: bool) -> Iterator[Contender]:
    """Our kernels at one density, and the parts of a training step if asked for."""
    lists = kernels.LiveLists(
        layer.weight_shape,
        **({} if layer.is_linear else {"stride": layer.stride, "padding": layer.padding}),
    )
    lists.update(live_positions(layer, density), version=1)
    for precision, dtype in PRECISIONS.items():
        x, weight = _tensors(layer, dtype)
        product = kernels.linear if layer.is_linear else kernels.conv2d
        if not layer.is_linear:
            x = calls.kernel_layout(x)
        found = passes(partial(_with_lists, product, lists), x, weight, training)
        yield from _contenders(found, precision, OURS, density)
        if parts:
            for name, call in _parts(layer, lists, x.detach(), weight.detach()).items():
                yield Contender(name, precision, OURS, density, call)


def _with_lists(
    product: Callable[..., Tensor], lists: kernels.LiveLists, x: Tensor, weight: Tensor
) -> Tensor:
    return product(x, weight, None, lists)


def live_positions(layer: Layer, density: float) -> Tensor:
    """The positions of random live weights, exactly as many as the density gives."""
    live = max(1, round(density * layer.weights))
    return torch.randperm(layer.weights)[:live].sort().values


def _parts(
    layer: Layer, lists: kernels.LiveLists, x: Tensor, weight: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """The calls that make up a training step, without autograd around them."""
    of_lists = (lists.tensor, lists.layout)
    values = calls.live_values(weight, *of_lists).to(x.dtype)
    dense_form = (layer.weight_shape, weight.dtype, False)
    prefix = "linear" if layer.is_linear else "conv2d"
    forward, of_input, of_values = (
        getattr(calls, prefix + suffix) for suffix in ("", "_input", "_values")
    )
    grad = torch.randn_like(forward(x, values, None, *of_lists))
    size = () if layer.is_linear else (x.shape[2:],)
    return dict(
        zip(
            PARTS,
            (
                lambda: calls.live_values(weight, *of_lists),
                lambda: forward(x, values, None, *of_lists),
                lambda: of_input(grad, values, *of_lists, *size),
                lambda: of_values(x, grad, *of_lists),
                lambda: calls.scatter_values(values.float(), *of_lists, *dense_form),
            ),
            strict=True,
        )
    )


def _contenders(
    found: dict[str, Any], precision: str, implementation: str, density: float | None = None
) -> Iterator[Contender]:
    for what, call in found.items():
        yield Contender(what, precision, implementation, density, call)


def _tensors(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(layer.input_shape)
    weight = torch.randn(layer.weight_shape) / (layer.inputs * layer.kernel**2) ** 0.5
    return x.to(dtype), weight.to(dtype)


def _dense_convolution(layer: Layer) -> Forward:
    return lambda x, weight: F.conv2d(x, weight, None, layer.stride, layer.padding)


def _packed(layer: Layer, x: Tensor, weight: Tensor, precision: str) -> Iterator[Contender]:
    """OneDNN on a weight in its own layout, which inference can prepare once."""
    x, weight = x.detach(), weight.detach()
    if precision not in precisions_of(x.device):
        return
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, layer.batch)
    pointwise = torch.ops.mkldnn._linear_pointwise
    call = torch.no_grad()(lambda: pointwise(x, packed, None, "none", [], ""))
    yield Contender(INFERENCE, precision, "oneDNN, packed", None, call)
