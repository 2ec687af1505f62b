"""Times of inference: a network's and the dense one's, in turn, in every number format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.timing.forms import Form
from benchmarks.overhead.timing import Round, milliseconds, ratios, run_rounds, seconds

#: How a network is stored and run; each of the two counts in that which is fastest for it.
WAYS = ("float32", "float32 channels-last", "bfloat16 channels-last")
CONDENSED = "float32, condensed"
PASS = "pass"
#: A single image takes little time, and varies the most.
MORE_ROUNDS_OF_ONE = 4

Call = Callable[[], Any]


def measure_inference(own: Form, dense: Form, batch: int, rounds: int, size: int) -> dict[str, Any]:
    """Median times of a forward pass, and their ratio in the same round.

    Args:
        own: The network of a run.
        dense: The full network, on the same device.
        batch: Number of images.
        rounds: How often each is measured; of one image, four times as often.
        size: Height and width of the images.

    Returns:
        ``batch``; ``own`` and ``dense``, each with the fastest ``way`` and quartiles of its
        ``milliseconds``; quartiles of their ``ratio``; the medians in all ``ways``; and the
        ``condensed`` layers.
    """
    device = next(dense.model.parameters()).device
    images = torch.randn(batch, 3, size, size).to(device)
    condensed = own.condensed(images)
    calls = _calls("own", own.model, images) | _calls("dense", dense.model, images)
    if condensed is not None:
        calls[f"own, {CONDENSED}"] = _forward(condensed[0], images)
    count = rounds * MORE_ROUNDS_OF_ONE if batch == 1 else rounds
    with torch.inference_mode():
        for call in calls.values():
            call()
        measured = run_rounds(
            calls,
            lambda call, _: {PASS: seconds(call, device)},
            rounds=range(count),
            on_round=lambda: None,
        )
    found = compare(measured, list(calls))
    return {"batch": batch, **found, "condensed": [] if condensed is None else condensed[1]}


def compare(measured: Sequence[Round], names: Sequence[str]) -> dict[str, Any]:
    """The fastest way of either network, and the ratio of the two in the same round.

    Args:
        measured: Seconds, by ``"own, WAY"`` and ``"dense, WAY"``.
        names: These names.

    Example:
        >>> seconds = {"own, a": 1.0, "dense, a": 4.0, "dense, b": 2.0}
        >>> rounds = [{name: {"pass": taken} for name, taken in seconds.items()}]
        >>> found = compare(rounds, list(rounds[0]))
        >>> found["dense"]["way"], found["ratio"]["median"]
        ('b', 0.5)
    """
    medians = {name: _median(measured, name) for name in names}
    fastest = {
        side: min((name for name in names if name.startswith(f"{side}, ")), key=medians.__getitem__)
        for side in ("own", "dense")
    }
    sides = {
        side: {
            "way": name.partition(", ")[2],
            "milliseconds": milliseconds(measured, name, PASS),
        }
        for side, name in fastest.items()
    }
    ratio = ratios(measured, fastest["own"], PASS, to=(fastest["dense"], PASS))
    return {**sides, "ratio": ratio, "ways": medians}


def _median(measured: Sequence[Round], name: str) -> float:
    found = milliseconds(measured, name, PASS)
    assert found is not None
    return found["median"]


def _calls(side: str, model: nn.Module, images: Tensor) -> Mapping[str, Call]:
    return {f"{side}, {way}": _placed(way, model, images) for way in WAYS}


def _placed(way: str, model: nn.Module, images: Tensor) -> Call:
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    layout = torch.channels_last if "channels-last" in way else torch.contiguous_format
    placed = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return _forward(placed, images.to(dtype=dtype, memory_format=layout))


def _forward(model: nn.Module, images: Tensor) -> Call:
    return lambda: model(images)
