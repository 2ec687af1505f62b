"""Sparse layers of other libraries, where they are installed and run; all are float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.kernels.implementations import Contender, live_positions, passes
from benchmarks.speed.kernels.layers import Layer
from sparseopt.speedup.kernels.calls import kernel_layout

PRECISION = "float32"


class NotForThisLayerError(Exception):
    """A library does not support this kind of layer."""


def peers(
    layer: Layer, density: float, training: bool
) -> Iterator[tuple[str, list[Contender], str | None]]:
    """Every library's name, with its calls to time or the reason why it can't be timed.

    Args:
        layer: The layer.
        density: The share of live weights.
        training: Whether gradients are timed too.
    """
    for name, make in PEERS.items():
        try:
            found = make(layer, density, training)
            for call in found.values():
                call()
        except NotForThisLayerError:
            continue
        # Whatever somebody else's library raises is the reason why it does not take part.
        except Exception as error:
            yield name, [], f"{type(error).__name__}: {error}".partition("\n")[0]
            continue
        yield (
            name,
            [Contender(what, PRECISION, name, density, call) for what, call in found.items()],
            None,
        )


def _csr(layer: Layer, density: float, training: bool) -> dict[str, Any]:
    if not layer.is_linear:
        raise NotForThisLayerError
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        weight = _sparse_weight(layer, density).to_sparse_csr()
    return passes(lambda x, w: (w @ x.t()).t(), torch.randn(layer.input_shape), weight, training)


def _sparseprop(layer: Layer, density: float, training: bool) -> dict[str, Any]:
    from sparseprop.modules import SparseConv2d, SparseLinear

    weight = _sparse_weight(layer, density)
    x = torch.randn(layer.input_shape)
    if layer.is_linear:
        module = SparseLinear(weight)
        return _with_weights(module, "W_val", x, training)
    # SparseProp vectorises over pixels or over samples. Then samples are innermost in its input.
    over_pixels = layer.batch == 1 and layer.stride == 1
    module = SparseConv2d(weight, None, layer.padding, layer.stride, over_pixels)
    return _with_weights(module, "W_val", x if over_pixels else kernel_layout(x), training)


def _sparselab(layer: Layer, density: float, training: bool) -> dict[str, Any]:
    if not layer.is_linear:
        raise NotForThisLayerError
    import sparselab

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        module = sparselab.SparseLinear(
            layer.inputs, layer.outputs, bias=False, sparsity=1 - density
        )
    return _with_weights(module, "_values", torch.randn(layer.input_shape), training)


def _with_weights(module: nn.Module, name: str, x: Tensor, training: bool) -> dict[str, Any]:
    """The passes of a module whose live weights are its parameter ``name``."""
    weight = module.get_parameter(name)

    @torch.no_grad()
    def inference() -> Any:
        return module(x)

    calls: dict[str, Any] = {"inference": inference}
    if training:
        grad = torch.randn_like(inference())
        leaves = (x.requires_grad_(), weight)
        calls["training"] = lambda: torch.autograd.grad(module(x), leaves, grad)
    return calls


def _sparse_weight(layer: Layer, density: float) -> Tensor:
    weight = torch.zeros(layer.weights)
    live = live_positions(layer, density)
    weight[live] = torch.randn(len(live))
    return weight.view(layer.weight_shape)


PEERS: dict[str, Callable[[Layer, float, bool], dict[str, Any]]] = {
    "torch CSR": _csr,
    "SparseProp": _sparseprop,
    "SparseLab": _sparselab,
}
