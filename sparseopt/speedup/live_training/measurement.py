"""Chooses the implementation of each layer, by measurements on a detached copy of the model.

First every layer is timed alone, forwards and backwards on the shapes of its inputs. For a
convolution this finds the fastest implementation *within* the kernels' layout, and for a linear
layer whether the kernels are faster than torch. Then the full model is timed, because only its time
includes normalisation, additions and conversions: unchanged, with its convolutions exchanged, with
its linear layers exchanged, and with both. The model stays unchanged unless one of these is faster
by more than the spread of the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.gradients import GradientFlag
from sparseopt.speedup.kernels.calls import kernel_layout
from sparseopt.speedup.live_training.detached_copy import (
    copy_of_inputs,
    copy_to_measure,
    training_pass,
    untouched_surroundings,
)
from sparseopt.speedup.live_training.exchange import ModelExchange
from sparseopt.speedup.live_training.plan import DENSE, Implementation, Plan
from sparseopt.speedup.live_training.possible import candidates, exchangeable_layers
from sparseopt.speedup.live_training.remaining import (
    SlowCall,
    seconds_by_operation,
    slow_calls,
)
from sparseopt.speedup.timing import Timing, clock_of, time_in_turn

__all__ = ["Measured", "TimedLayer", "fastest", "measure"]

_LAYER_ROUNDS: Final = 3
_MODEL_ROUNDS: Final = 5
#: A pass that takes this many times as long as another is not measured again. On a processor
#: without instructions for bf16, for example, torch's convolutions take 20 times as long as ours.
_HOPELESS: Final = 4.0

#: A function that times calls, given by name, in a number of rounds.
Timer = Callable[[Mapping[str, Callable[[], Any]], int], dict[str, Timing]]


@dataclass(frozen=True)
class TimedLayer:
    """The times of one layer, for one shape of its input.

    Attributes:
        name: the layer's name.
        shape: the shape of the input.
        density: the density of the weights.
        seconds: the median time of a forward and a backward pass, by implementation; empty for a
            layer that only torch can compute.
    """

    name: str
    shape: str
    density: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """The result of a measurement, and the choice that follows from it.

    Attributes:
        plan: the chosen plan.
        layers: the times of each layer.
        model: the times of the full model: "dense", and other plans by name.
        chosen: the name of the chosen one.
        operations: the seconds of each operation in a pass by the chosen plan.
        slow_calls: functions that user code calls in this pass, or in a pass by the fastest other
            plan if "dense" is chosen, and that are slow on maps in the kernels' layout.
    """

    plan: Plan
    layers: list[TimedLayer]
    model: dict[str, Timing]
    chosen: str
    operations: dict[str, float] = field(default_factory=dict)
    slow_calls: list[SlowCall] = field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """The input of a layer in the model's forward pass."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    channels_last: bool

    @property
    def text(self) -> str:
        """The shape in the form that plans use, ``"128x16x32x32"``."""
        return "x".join(map(str, self.shape))

    def tensor(self) -> Tensor:
        """Return a tensor like the input."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.randn(self.shape, dtype=self.dtype, device="cpu").contiguous(memory_format=layout)
        return x.requires_grad_(self.requires_grad)


@dataclass
class _Found:
    """The plans to time on the full model; they grow with each layer that is timed."""

    maps: Plan = field(default_factory=dict)
    linear: Plan = field(default_factory=dict)
    times: list[TimedLayer] = field(default_factory=list)

    def plans(self) -> dict[str, Plan]:
        plans: dict[str, Plan] = {DENSE: {}}
        if any("live" in choices.values() for choices in self.maps.values()):
            plans["convolutions"] = self.maps
        if self.linear:
            plans["linear layers"] = self.linear
        if len(plans) == 3:
            plans["both"] = {**self.maps, **self.linear}
        return plans


def measure(
    model: nn.Module,
    layers: Mapping[str, SparseLayer],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    timer: Timer | None = None,
) -> Measured:
    """Measure on a copy of ``model``, in the present autocast mode, and choose a plan.

    Args:
        model: the model, with no module exchanged.
        layers: the sparse layers, by name of the module.
        args: the model's positional inputs.
        kwargs: its keyword inputs.
        timer: the function that times calls; by default calls are timed in turn.
    """
    timer = _timed_in_turn if timer is None else timer
    args, kwargs = copy_of_inputs((args, kwargs))
    copied = copy_to_measure(model)
    exchanged = ModelExchange(copied, layers, GradientFlag())
    with untouched_surroundings(copied):
        seen = _inputs_of_layers(copied, args, kwargs)
        found = _time_layers(exchanged, seen, layers, timer)
        plans = found.plans()
        if len(plans) == 1:
            return Measured({}, found.times, {}, DENSE)
        calls = {
            name: _pass_by(plan, exchanged, copied, args, kwargs) for name, plan in plans.items()
        }
        times = timer(calls, _MODEL_ROUNDS)
        chosen = fastest(times)
        # If nothing is faster, the calls that make the best of the other plans slow may say why.
        others = (name for name in times if name != DENSE)
        watched = min(others, key=lambda name: times[name].median) if chosen == DENSE else chosen
        exchanged.apply(plans[watched])
        operations, slow = _what_remains(calls[watched], lambda: copied(*args, **kwargs))
    return Measured(
        plans[chosen],
        found.times,
        times,
        chosen,
        operations if watched == chosen else {},
        slow,
    )


def _what_remains(
    call: Callable[[], Any], forward: Callable[[], Any]
) -> tuple[dict[str, float], list[SlowCall]]:
    try:
        return seconds_by_operation(call), slow_calls(forward)
    except Exception:  # a model whose operations can't be watched is not slower because of that
        return {}, []


def fastest(times: Mapping[str, Timing]) -> str:
    """Return the call of lowest median if it is clearly faster than "dense".

    The call must be faster in more than three quarters of the rounds.

    Example:
        >>> dense = Timing((2.0, 2.0, 2.0, 2.0))
        >>> fastest({"dense": dense, "other": Timing((1.0, 1.0, 1.5, 1.0))})
        'other'
        >>> fastest({"dense": dense, "other": Timing((1.0, 1.0, 2.5, 2.5))})
        'dense'
    """
    best = min(times, key=lambda name: times[name].median)
    return best if times[best].over(times[DENSE]).q3 < 1 else DENSE


def _timed_in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    return time_in_turn(
        calls,
        rounds=rounds,
        device="cpu",
        warmup=1,
        hopeless=_HOPELESS,
        clock=clock_of("cpu"),
    )


def _inputs_of_layers(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, list[_Seen]]:
    """Run the copy once, and record the inputs of each layer."""
    seen: dict[str, list[_Seen]] = {}
    handles = []
    for name, module in exchangeable_layers(model).items():

        def note(module: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            x = inputs[0] if inputs else None
            if isinstance(x, Tensor):
                channels_last = x.dim() == 4 and not x.is_contiguous()
                new = _Seen(tuple(x.shape), x.dtype, x.requires_grad, channels_last)
                if all(new.shape != other.shape for other in seen.get(name, [])):
                    seen.setdefault(name, []).append(new)

        handles.append(module.register_forward_pre_hook(note))
    try:
        training_pass(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _time_layers(
    exchanged: ModelExchange,
    seen: Mapping[str, list[_Seen]],
    layers: Mapping[str, SparseLayer],
    timer: Timer,
) -> _Found:
    """Time every layer; layers of equal geometry and nearly equal density are timed once."""
    found = _Found()
    known: dict[Any, dict[str, Timing]] = {}
    for name, module in exchangeable_layers(exchanged.model).items():
        layer = layers.get(name)
        possible = candidates(module, layer)
        density = 1.0 if layer is None else layer.density
        for given in seen.get(name, []):
            if possible == {DENSE}:
                found.times.append(TimedLayer(name, given.text, density, {}))
                continue
            key = module.extra_repr(), given, round(density, 2)
            if key not in known:
                known[key] = _time_layer(exchanged, name, module, possible, given, timer)
            times = known[key]
            shape = given.text
            seconds = {implementation: time.median for implementation, time in times.items()}
            found.times.append(TimedLayer(name, shape, density, seconds))
            if isinstance(module, nn.Linear):
                if fastest(times) == "live":
                    found.linear.setdefault(name, {})[shape] = "live"
            else:
                found.maps.setdefault(name, {})[shape] = _fastest_within(seconds)
    return found


def _fastest_within(seconds: Mapping[str, float]) -> Implementation:
    """Return the fastest implementation that returns a map in the kernels' layout."""
    within: Any = min((name for name in seconds if name != DENSE), key=seconds.__getitem__)
    chosen: Implementation = within
    return chosen


def _time_layer(
    exchanged: ModelExchange,
    name: str,
    module: nn.Module,
    possible: set[Implementation],
    seen: _Seen,
    timer: Timer,
) -> dict[str, Timing]:
    """Time forward and backward pass of one layer by each possible implementation, in turn.

    Each implementation gets its input in the layout that it takes in the model, so that no
    conversion is timed. The layer is dense again afterwards.
    """
    calls: dict[str, Callable[[], Any]] = {}
    x = seen.tensor()
    for implementation in sorted(possible):
        given = x
        if implementation != DENSE and x.dim() == 4 and isinstance(module, nn.Conv2d):
            given = kernel_layout(x.detach()).requires_grad_(seen.requires_grad)
        calls[implementation] = _layer_pass(
            exchanged, {name: {seen.text: implementation}}, module, given
        )
    try:
        return timer(calls, _LAYER_ROUNDS)
    finally:
        exchanged.end()


def _layer_pass(
    exchanged: ModelExchange, plan: Plan, module: nn.Module, x: Tensor
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass of one layer under ``plan``.

    It applies the plan in each call, because the calls of several plans take turns.
    """
    exchanged.apply(plan)
    gradient = torch.ones_like(module(x))

    def call() -> None:
        exchanged.apply(plan)
        y = module(x)
        if y.requires_grad:
            y.backward(gradient)
        x.grad = None
        module.zero_grad()

    return call


def _pass_by(
    plan: Plan,
    exchanged: ModelExchange,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass of the model under ``plan``."""

    def call() -> None:
        exchanged.apply(plan)
        training_pass(model, args, kwargs)

    return call
