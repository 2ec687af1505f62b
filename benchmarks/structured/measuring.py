"""Times of a dense, a compacted and a hand-built model, in turn, in one process."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.structured.models import IMAGE, WORKLOADS, built_by_hand, masked
from sparseopt import Compaction

Record = dict[str, Any]
Calls = Mapping[str, Callable[[], Any]]

#: How a model is stored and run; a speed-up is against the fastest of them.
WAYS = ("float32", "float32 channels-last", "bfloat16 channels-last")
#: Layers whose own times are measured, at most: those with the most multiplications.
LAYERS = 12


@dataclass(frozen=True)
class Case:
    """One workload at one density, made once and timed at several batch sizes."""

    workload: str
    density: float
    dense: nn.Module
    compacted: nn.Module
    by_hand: nn.Module
    flops_ratio: float

    @staticmethod
    def make(workload: str, density: float) -> Case:
        """Build the three models."""
        torch.manual_seed(0)
        dense = WORKLOADS[workload]()
        compaction = Compaction(dense, masked(dense, density), torch.randn(2, *IMAGE))
        report = compaction.report
        if report.remaining:
            raise RuntimeError(f"not everything was removed:\n{report}")
        by_hand = built_by_hand(compaction.model)
        return Case(workload, density, dense, compaction.model, by_hand, report.flops_ratio)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models by what they are called in the report."""
        return {"dense": self.dense, "compacted": self.compacted, "by hand": self.by_hand}


def measure_inference(case: Case, batch: int, rounds: int) -> Record:
    """Return medians of a forward pass, of every model in every way, in milliseconds."""
    image = torch.randn(batch, *IMAGE)
    calls = {}
    for name, model in case.models.items():
        for way in WAYS:
            inputs, placed = _placed(way, image, model)
            calls[f"{name}, {way}"] = _forward(placed.eval(), inputs)
    with torch.no_grad():
        times = interleaved(calls, rounds)
    return {"batch": batch, "rounds": rounds, "milliseconds": times}


def measure_layers(case: Case, batch: int, rounds: int) -> list[Record]:
    """Return for the largest convolutions their FLOP ratio and their time ratio."""
    shapes = {name: _input_shapes(model, batch) for name, model in case.models.items()}
    convolutions = {
        path: module for path, module in case.dense.named_modules() if isinstance(module, nn.Conv2d)
    }
    flops = {path: _flops(convolutions[path], shapes["dense"][path]) for path in convolutions}
    largest = sorted(flops, key=lambda path: -flops[path])[:LAYERS]
    records = []
    for path in [path for path in convolutions if path in largest]:
        smaller = case.compacted.get_submodule(path)
        inputs = {name: torch.randn(shapes[name][path]) for name in ("dense", "compacted")}
        with torch.no_grad():
            times = interleaved(
                {
                    "dense": _forward(convolutions[path], inputs["dense"]),
                    "compacted": _forward(smaller, inputs["compacted"]),
                },
                rounds,
            )
        records.append(
            {
                "name": path,
                "dense": list(convolutions[path].weight.shape),
                "compacted": list(smaller.weight.shape),  # type: ignore[arg-type]
                "flops": flops[path],
                "compacted_flops": _flops(smaller, shapes["compacted"][path]),
                "milliseconds": times,
            }
        )
    return records


def interleaved(calls: Calls, rounds: int) -> dict[str, float]:
    """Return the median of each call in milliseconds; the order is drawn anew each round."""
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}


def _placed(way: str, image: Tensor, model: nn.Module) -> tuple[Tensor, nn.Module]:
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    layout = torch.channels_last if "channels-last" in way else torch.contiguous_format
    placed = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return image.to(dtype=dtype, memory_format=layout), placed


def _forward(model: nn.Module, inputs: Tensor) -> Callable[[], Any]:
    return lambda: model(inputs)


def _input_shapes(model: nn.Module, batch: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, path=path: shapes.update({path: tuple(args[0].shape)})
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.eval()(torch.randn(batch, *IMAGE))
    for handle in handles:
        handle.remove()
    return shapes


def _flops(convolution: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad():
        places = convolution(torch.empty(1, *shape[1:])).shape[2:].numel()
    return 2 * convolution.weight.numel() * places  # type: ignore[operator, union-attr]
