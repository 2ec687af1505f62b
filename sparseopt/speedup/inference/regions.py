"""Chooses the implementation of each layer by measured times and conversions between layouts.

A dense convolution is fastest on channels-last maps, and the kernels have their own memory layout.
Between the two, the map has to be converted, so the best choice for a convolution depends on the
layers next to it.

Algorithm: dynamic programming along the order of the graph. Invariant: after each layer, ``best``
has the least total time, conversions included, for each layout that the result can have. Where
branches meet, this is an approximation, so the full model is timed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.speedup.inference.network import Site
from sparseopt.speedup.live_training.layout import to_channels_last, to_kernel_layout
from sparseopt.speedup.timing import time_briefly

__all__ = ["Candidates", "cheapest_chain", "choose_layers"]

_DENSE: Final = "dense"


@dataclass
class Candidates:
    """The implementations of one layer.

    Attributes:
        site: the layer's place in the model.
        density: live weights over all weights.
        layers: modules by name of the implementation; ``"dense"`` is always there.
        inputs: the layer's inputs.
        seconds: times by name of the implementation, once they are measured.
        conversion: seconds to convert the inputs from one layout to the other.
    """

    site: Site
    density: float
    layers: dict[str, nn.Module]
    inputs: tuple[Tensor, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    conversion: float = 0.0


def choose_layers(candidates: Sequence[Candidates], device: torch.device) -> dict[str, str]:
    """Time all implementations of each layer, and return the choices by name of the site."""
    known: dict[Any, tuple[dict[str, float], float]] = {}
    for one in candidates:
        if len(one.layers) < 2 or not one.inputs:
            continue
        key = _kind(one)
        if key not in known:
            known[key] = _time(one, device)
        one.seconds, one.conversion = known[key]
    maps = [one for one in candidates if isinstance(one.site.module, nn.Conv2d)]
    chosen = dict(zip((one.site.name for one in maps), cheapest_chain(maps), strict=True))
    for one in candidates:
        if one.site.name not in chosen:
            chosen[one.site.name] = min(one.seconds, key=one.seconds.__getitem__, default=_DENSE)
    return chosen


def cheapest_chain(chain: Sequence[Candidates]) -> list[str]:
    """Return the choices along a chain of convolutions with the least total time.

    The total includes the conversions between layouts.
    """
    best: dict[bool, tuple[float, list[str]]] = {True: (0.0, []), False: (0.0, [])}
    for one in chain:
        options = {name: one.seconds.get(name, 0.0) for name in one.layers}
        after: dict[bool, tuple[float, list[str]]] = {}
        for is_dense in (True, False):
            within = {name: time for name, time in options.items() if (name == _DENSE) == is_dense}
            if not within:
                continue
            name = min(within, key=within.__getitem__)
            after[is_dense] = min(
                (
                    seconds + within[name] + (one.conversion if was_dense != is_dense else 0.0),
                    [*choices, name],
                )
                for was_dense, (seconds, choices) in best.items()
            )
        best = after
    return min(best.values())[1]


def _kind(one: Candidates) -> Any:
    """Return a key of geometry, inputs and density: layers with equal keys are timed once."""
    site = one.site
    shapes = tuple((x.shape, x.dtype) for x in one.inputs)
    layers = tuple(one.layers)
    return site.module.extra_repr(), shapes, site.bounds, round(one.density, 2), layers


@torch.no_grad()
def _time(one: Candidates, device: torch.device) -> tuple[dict[str, float], float]:
    """Return the seconds of each implementation, and of one conversion of the inputs.

    Each layer gets inputs in the memory layout that it reads, so no time includes a conversion.
    """
    inputs = one.inputs
    calls: dict[str, Any] = {}
    for name, layer in one.layers.items():
        given = [_as_read(x, kernels=name != _DENSE) for x in inputs]
        calls[name] = _call(layer, given)
    if inputs[0].dim() == 4:
        calls["conversion"] = _conversion(inputs)
    seconds = time_briefly(calls, device)
    return {name: seconds[name] for name in one.layers}, seconds.get("conversion", 0.0)


def _as_read(x: Tensor, *, kernels: bool) -> Tensor:
    if x.dim() != 4:
        return x
    return to_kernel_layout(x) if kernels else x.contiguous(memory_format=torch.channels_last)


def _call(layer: nn.Module, inputs: Sequence[Tensor]) -> Any:
    return lambda: layer(*inputs)


def _conversion(inputs: Sequence[Tensor]) -> Any:
    last = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    own = [to_kernel_layout(x) for x in inputs]
    # Switching to the kernels and back converts each input in both directions. Half of this is
    # timed: the first input in one direction, and the residual in the other.
    return lambda: [to_kernel_layout(x) for x in last[:1]] + [to_channels_last(x) for x in own[1:]]
