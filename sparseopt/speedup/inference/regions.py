"""What computes each layer: by measurement, with the conversions between two memory layouts.

A dense convolution is fastest on channels-last maps, the kernels have a layout of their own, and a
map that goes from one to the other is converted. So the choice for one convolution depends on its
neighbours'. Of all choices along the order of the graph, the one of the least sum of times is
found by dynamic programming: after each layer, the least time for each layout that its result can
be in. Where branches meet this is an approximation, which is why the whole model is timed after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.speedup.inference.network import Site
from sparseopt.speedup.live_training.layout import to_channels_last, to_kernel_layout
from sparseopt.speedup.timing import Clock, time_in_turn

__all__ = ["Candidates", "cheapest_chain", "choose_layers", "clock_of"]

_ROUNDS: Final = 5
_LONG_ENOUGH: Final = 1e-3
_DENSE: Final = "dense"


@dataclass
class Candidates:
    """What can compute one layer.

    Attributes:
        site: its place.
        density: live weights over all.
        layers: modules by name; ``"dense"`` is one of them.
        inputs: what it is given.
        seconds: their times, once measured.
        conversion: seconds to bring its inputs from one layout to the other.
    """

    site: Site
    density: float
    layers: dict[str, nn.Module]
    inputs: tuple[Tensor, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    conversion: float = 0.0


def clock_of(device: torch.device) -> Clock:
    """Return the clock to choose by: what other processes take from the core is no reason."""
    is_alone = device.type == "cpu" and torch.get_num_threads() == 1
    return "thread" if is_alone else "wall"


def choose_layers(candidates: Sequence[Candidates], device: torch.device) -> dict[str, str]:
    """Time every layer, and return the choice for each site, by its name."""
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
    """Return the choices along a chain of convolutions whose times and conversions sum to least."""
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
    """Return a key; layers with equal keys (geometry, inputs, density) take the same time."""
    site = one.site
    shapes = tuple((x.shape, x.dtype) for x in one.inputs)
    layers = tuple(one.layers)
    return site.module.extra_repr(), shapes, site.bounds, round(one.density, 2), layers


@torch.no_grad()
def _time(one: Candidates, device: torch.device) -> tuple[dict[str, float], float]:
    """Return the seconds of each layer for one place, and of a conversion of its inputs.

    Each layer gets inputs in the memory layout that it reads, so no time includes a conversion.
    """
    inputs = one.inputs
    calls: dict[str, Any] = {}
    for name, layer in one.layers.items():
        given = [_as_read(x, kernels=name != _DENSE) for x in inputs]
        calls[name] = _call(layer, given)
    if inputs[0].dim() == 4:
        calls["conversion"] = _conversion(inputs)
    times = time_in_turn(
        calls,
        rounds=_ROUNDS,
        device=device,
        warmup=2,
        shortest=_LONG_ENOUGH,
        clock=clock_of(device),
    )
    seconds: Mapping[str, float] = {name: time.median for name, time in times.items()}
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
    # Half of the way there and back.
    return lambda: [to_kernel_layout(x) for x in last[:1]] + [to_channels_last(x) for x in own[1:]]
