"""Times of inference: a network's and the dense one's, in turn, in every number format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.timing.forms import Form
from benchmarks.overhead.timing import Round, milliseconds, ratios, run_rounds, seconds

#: How a network is stored; each of the two counts in the way that is fastest for it.
FORMATS = ("float32", "float32 channels-last", "bfloat16 channels-last")
CONDENSED = "float32, condensed"
PASS = "pass"
#: A single image takes little time, and varies the most.
MORE_ROUNDS_OF_ONE = 4

Call = Callable[[], Any]


@dataclass(frozen=True)
class Way:
    """A network ready to be called, and the number of threads to call it with."""

    call: Call
    threads: int

    def seconds(self, device: torch.device) -> float:
        """How long a call takes."""
        torch.set_num_threads(self.threads)
        return seconds(self.call, device)


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
        ``condensed`` layers. The ways are the number formats, each with one thread and with as
        many as torch has now: a small network may wait for threads longer than it computes.
    """
    device = next(dense.model.parameters()).device
    images = torch.randn(batch, 3, size, size).to(device)
    condensed = own.condensed(images)
    calls = _calls("own", own.model, images) | _calls("dense", dense.model, images)
    if condensed is not None:
        calls[f"own, {CONDENSED}"] = _forward(condensed[0], images)
    threads = torch.get_num_threads()
    ways = {
        f"{name}, {count} {'thread' if count == 1 else 'threads'}": Way(call, count)
        for name, call in calls.items()
        for count in ({1, threads} if device.type == "cpu" else {threads})
    }
    with torch.inference_mode():
        measured = _rounds(ways, rounds * MORE_ROUNDS_OF_ONE if batch == 1 else rounds, device)
    torch.set_num_threads(threads)
    found = compare(measured, list(ways))
    return {"batch": batch, **found, "condensed": [] if condensed is None else condensed[1]}


def _rounds(ways: dict[str, Way], count: int, device: torch.device) -> list[Round]:
    for way in ways.values():
        way.seconds(device)
    return run_rounds(
        ways,
        lambda way, _: {PASS: way.seconds(device)},
        rounds=range(count),
        on_round=lambda: None,
    )


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


def _calls(side: str, model: nn.Module, images: Tensor) -> dict[str, Call]:
    return {f"{side}, {name}": _placed(name, model, images) for name in FORMATS}


def _placed(name: str, model: nn.Module, images: Tensor) -> Call:
    dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
    layout = torch.channels_last if "channels-last" in name else torch.contiguous_format
    placed = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return _forward(placed, images.to(dtype=dtype, memory_format=layout))


def _forward(model: nn.Module, images: Tensor) -> Call:
    return lambda: model(images)
