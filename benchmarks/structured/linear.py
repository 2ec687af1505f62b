"""Times of linear layers of constant fan-in, in every way that this machine has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparseopt import Condensation, SparseOptimizer

Record = dict[str, Any]

#: Inputs and outputs of the layers: those of a transformer's feed-forward block.
SHAPES = ((768, 3072), (3072, 768))
DENSITIES = (0.2, 0.1, 0.05, 0.01)


def measure_linear(rows: int, rounds: int) -> list[Record]:
    """Return the times of every layer at every density, given ``rows`` vectors at once."""
    return [_measure(shape, density, rows, rounds) for shape in SHAPES for density in DENSITIES]


def _measure(shape: tuple[int, int], density: float, rows: int, rounds: int) -> Record:
    torch.manual_seed(0)
    inputs, outputs = shape
    model = nn.Sequential(nn.Linear(inputs, outputs))
    fan_in = round(density * inputs)
    mask = torch.zeros(outputs, inputs, dtype=torch.bool)
    mask.scatter_(1, torch.rand(outputs, inputs).topk(fan_in).indices, True)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", mask={"0": mask})
    (times,) = Condensation(model, optimizer, torch.randn(rows, inputs), rounds=rounds).report
    return {
        "shape": list(shape),
        "density": density,
        "rows": rows,
        "dense": dict(times.dense),
        "sparse": dict(times.sparse),
        "chosen": times.chosen,
    }
