"""How much of each layer is live, from the shapes alone."""

import math
from collections.abc import Sequence

Shape = Sequence[int]


def erk_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdos-Renyi-kernel: density proportional to sum(shape) / prod(shape), never above 1."""
    return _scaled(shapes, [sum(shape) / math.prod(shape) for shape in shapes], density)


def er_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdos-Renyi: as ERK, over the input and output dimension only."""
    return _scaled(shapes, [sum(shape[:2]) / math.prod(shape[:2]) for shape in shapes], density)


def uniform_densities(shapes: Sequence[Shape], density: float) -> list[float]:
    """The first layer is dense, and all others have the target density."""
    return [1.0] + [density] * (len(shapes) - 1)


def live_counts(shapes: Sequence[Shape], densities: Sequence[float]) -> list[int]:
    """Exactly round(density * numel) weights of each layer, at least one."""
    return [
        max(1, round(density * math.prod(shape)))
        for shape, density in zip(shapes, densities, strict=True)
    ]


def _scaled(shapes: Sequence[Shape], raw: list[float], density: float) -> list[float]:
    """Solve for eps; layers above 1 become dense and eps is solved again until none is."""
    sizes = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while len(dense) < len(sizes):
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        sparse = [i for i in range(len(sizes)) if i not in dense]
        eps = budget / sum(raw[i] * sizes[i] for i in sparse)
        too_dense = {i for i in sparse if eps * raw[i] > 1}
        if not too_dense:
            return [1.0 if i in dense else eps * raw[i] for i in range(len(sizes))]
        dense |= too_dense
    return [1.0] * len(sizes)
