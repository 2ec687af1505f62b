"""The layers of a model that can be exchanged, and the possible implementations of each."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.speedup.live_training.layer_state import convolution_padding, has_kernels
from sparseopt.speedup.live_training.plan import Implementation
from sparseopt.utils.hooks import has_own_functions
from sparseopt.utils.wrappers import canonical_name

__all__ = ["candidates", "exchangeable_layers", "possible_implementations"]

#: With more weights for each output, "full" is the slowest implementation of a dense convolution.
FULL_UP_TO = 72


def exchangeable_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the modules of exactly the classes Conv2d and Linear, by canonical name."""
    return dict(_layers(model))


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    for name, module in model.named_modules():
        if type(module) in {nn.Conv2d, nn.Linear} and module._parameters.get("weight") is not None:
            yield canonical_name(name), module


def possible_implementations(module: nn.Module) -> set[Implementation]:
    """Return the implementations that can compute a layer with any mask."""
    if isinstance(module, nn.Linear):
        return {"dense", "live"} if has_kernels(module) else {"dense"}
    possible: set[Implementation] = {"dense", "converted"}
    if has_kernels(module):
        possible |= {"live", "full"}
    if _is_product(module):
        possible.add("product")
    return possible


def candidates(module: nn.Conv2d | nn.Linear, layer: SparseLayer | None) -> set[Implementation]:
    """Return the implementations that may be the fastest for a layer's present mask."""
    if has_own_functions(module):
        return {"dense"}
    possible = possible_implementations(module)
    if layer is None or layer.is_full:
        possible.discard("live")
    if "live" in possible or module.weight[0].numel() > FULL_UP_TO:
        possible.discard("full")
    if "product" in possible:
        possible.discard("converted")
    return possible


def _is_product(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and convolution_padding(module) == (0, 0)
    )
