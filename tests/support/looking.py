"""Weights, masks and optimizer state in one common form."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from tests.support.catalogue import fresh_value


def logical(tensor: torch.Tensor) -> np.ndarray:
    """A copy of all values in logical (row-major) order; bf16 and fp16 widen without loss."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    wide = flat if flat.dtype == torch.bool else flat.double()
    return wide.numpy().copy()


def masks_of(optimizer: SparseOptimizer) -> dict[str, np.ndarray]:
    """A copy of every mask."""
    return {name: logical(mask) for name, mask in optimizer.masks.items()}


def per_weight_state(
    optimizer: Optimizer, parameter: nn.Parameter, mask: torch.Tensor | None = None
) -> dict[str, np.ndarray]:
    """Every state tensor with a value per weight, written out for all weights of the parameter.

    Live state, which holds the live weights in logical order, is put back into its places; the
    others get what a fresh parameter has.
    """
    inner = optimizer.inner if isinstance(optimizer, SparseOptimizer) else optimizer
    live = parameter.numel() if mask is None else int(mask.sum())
    found: dict[str, np.ndarray] = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if not torch.is_tensor(value) or value.dtype == torch.bool or value.numel() == 1:
            continue
        if value.shape == parameter.shape:
            found[key] = logical(value)
        elif mask is not None and value.shape == (live,):
            full = np.full(parameter.numel(), fresh_value(inner, key, value.dtype))
            full[logical(mask)] = logical(value)
            found[key] = full
    return found


def assert_same_state(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], err_msg=key)


def assert_dropped_are_fresh(
    optimizer: SparseOptimizer, known: Mapping[str, float] | None = None
) -> None:
    """Every dropped weight is zero, and its state is what a fresh parameter has.

    For optimizers of other libraries this is 0, except for the keys in `known`.
    """
    for layer in optimizer.layers:
        dropped = ~logical(layer.mask)
        assert not logical(layer.weight)[dropped].any(), f"{layer.name}: a dropped weight came back"
        state = per_weight_state(optimizer, layer.weight, layer.mask)
        for key, value in state.items():
            fresh = fresh_value(optimizer.inner, key, layer.weight.dtype)
            if known and key in known:
                fresh = float(torch.tensor(known[key], dtype=layer.weight.dtype))
            assert (value[dropped] == fresh).all(), f"{layer.name}: {key} of a dropped weight"


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    """Equal to the last bit, except for the sign of zeros."""
    for (name, mine), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(mine, theirs), f"{name}: off by {(mine - theirs).abs().max().item()}"


def is_dense(optimizer: SparseOptimizer, name: str) -> bool:
    """Whether the parameter is dense, as a full layer or as no layer."""
    return name not in optimizer.masks or bool(optimizer.masks[name].all())


def snapshot(optimizer: SparseOptimizer, model: nn.Module) -> dict[str, Any]:
    """Everything that must not change when a call raises an error."""
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "masks": {name: mask.clone() for name, mask in optimizer.masks.items()},
        "steps": optimizer.steps,
        "history": list(optimizer.history),
        "state": {
            layer.name: per_weight_state(optimizer, layer.weight, layer.mask)
            for layer in optimizer.layers
        },
        "lr": [group.get("lr") for group in optimizer.param_groups],
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, weight in before["weights"].items():
        assert torch.equal(weight, after["weights"][name]), name
    for name, mask in before["masks"].items():
        assert torch.equal(mask, after["masks"][name]), name
    for name, state in before["state"].items():
        assert_same_state(state, after["state"][name])
    for key in ("steps", "history", "lr"):
        assert before[key] == after[key], key


def names(optimizer: SparseOptimizer) -> list[str]:
    """The names of the layers."""
    return [layer.name for layer in optimizer.layers]


def densities(optimizer: SparseOptimizer) -> dict[str, float]:
    """The density of every layer, by name."""
    return {layer.name: layer.density for layer in optimizer.layers}
