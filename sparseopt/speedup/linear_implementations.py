"""The implementations of one linear layer, dense and sparse, and how long each takes here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseopt.speedup.sparse_linear import (
    CondensedLinear,
    CSRLinear,
    autocast_type,
    is_constant_fan_in,
)
from sparseopt.speedup.timing import time_in_turn

__all__ = ["dense_implementations", "median_seconds", "sparse_implementations", "type_name"]

#: Calls are repeated within one measurement until it takes about so long, in seconds.
LONG_ENOUGH: Final = 1e-3


def dense_implementations(layer: nn.Linear, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Return calls that compute ``layer(x)`` densely, by name.

    With bfloat16 the input is of that type already, as in a model that is all bfloat16.
    """
    weight = layer.weight.detach()
    bias: Tensor | None = layer._parameters["bias"]
    half = (x.bfloat16(), weight.bfloat16(), None if bias is None else bias.detach().bfloat16())
    dtype = autocast_type(x, weight) or x.dtype
    calls: dict[str, Callable[[], Any]] = {
        f"F.linear {type_name(dtype)}": lambda: F.linear(x, weight, bias),
        "F.linear bfloat16": lambda: F.linear(*half),
    }
    operands = {"float32": (x, weight, bias), "bfloat16": half}
    for precision, (inputs, matrix, added) in operands.items():
        packed = _packed(matrix, inputs, precision)
        if packed is not None:
            calls[f"oneDNN packed {precision}"] = _pointwise(inputs, packed, added)
    return calls


def type_name(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``, and so on."""
    return str(dtype).removeprefix("torch.")


def _pointwise(x: Tensor, packed: Tensor, bias: Tensor | None) -> Callable[[], Any]:
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def sparse_implementations(layer: nn.Linear, mask: Tensor, x: Tensor) -> dict[str, nn.Module]:
    """Return modules that compute ``layer(x)`` with its live weights only, by name.

    Not every device, precision and build of torch has products of compressed sparse rows.
    """
    modules: dict[str, nn.Module] = {"CSR": CSRLinear(layer.weight, mask, layer.bias)}
    if is_constant_fan_in(mask):
        modules["condensed"] = CondensedLinear(layer.weight, mask, layer.bias)
    return {name: module for name, module in modules.items() if _runs(module, x)}


@torch.no_grad()
def _runs(module: nn.Module, x: Tensor) -> bool:
    try:
        module(x)
    # Of which NotImplementedError is one kind; builds without MKL raise the other.
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def median_seconds(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Return the median time of each call on ``device``, all of them in turn in every round."""
    times = time_in_turn(calls, rounds=rounds, device=device, warmup=2, shortest=LONG_ENOUGH)
    return {name: time.median for name, time in times.items()}


def _packed(weight: Tensor, x: Tensor, dtype: str) -> Tensor | None:
    """Return the weight in oneDNN's own layout, or ``None`` where that can't be had.

    Args:
        weight: the weight.
        x: what it is multiplied by.
        dtype: the precision that both have to have, by name.
    """
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    if {str(weight.dtype), str(x.dtype)} != {f"torch.{dtype}"}:
        return None
    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    rows = x.numel() // x.shape[-1]
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed
