"""The report of a compaction: what it removed, what it could not remove and why, what it saved."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CompactionReport", "LayerSizes", "Remaining"]


@dataclass(frozen=True)
class LayerSizes:
    """One layer before and after.

    Attributes:
        name: the weight's name.
        shape: its shape before.
        compacted: its shape after.
        possible: its shape if every dropped channel could be removed independently.
        multiplications: how often each entry of the weight was multiplied in the analysed run, on
            average.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, compact
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> neurons = torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     init={"2": 1.0}, mask={"0": neurons[:, None].expand(4, 6)})
        >>> compacted = compact(model, optimizer, example_inputs=torch.randn(2, 6))
        >>> sizes = compacted.report.layers[0]
        >>> sizes.name, sizes.shape, sizes.compacted
        ('0.weight', (4, 6), (3, 6))
    """

    name: str
    shape: tuple[int, ...]
    compacted: tuple[int, ...]
    possible: tuple[int, ...]
    multiplications: int


@dataclass(frozen=True)
class Remaining:
    """Positions along which a weight has no live entry, but which are still in the model.

    Attributes:
        name: the weight's name.
        dim: the dimension of the positions in the weight: of filters and neurons, or of input
            columns.
        positions: the positions in the full weight.
        reason: why they cannot be removed.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, compact
        >>> model = torch.nn.Linear(6, 4)
        >>> neurons = torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     mask={"weight": neurons[:, None].expand(4, 6)})
        >>> compacted = compact(model, optimizer, example_inputs=torch.randn(2, 6))
        >>> remaining = compacted.report.remaining[0]
        >>> remaining.name, remaining.dim, remaining.positions, remaining.reason
        ('weight', 0, (1,), 'they are outputs of the model')
    """

    name: str
    dim: int
    positions: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class CompactionReport:
    """The report of a compaction.

    ``str(report)`` is a table. All ratios are relative to the dense model.

    Attributes:
        layers: all weights that are multiplied with channels, in the model's order.
        remaining: dropped channels that could not be removed.
        parameters: number of parameters before.
        compacted_parameters: number of parameters after.
        left_out: sparse weights of modules whose channels are not known, such as recurrent layers
            and computed weights; they stay as they are.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, compact
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> neurons = torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     init={"2": 1.0}, mask={"0": neurons[:, None].expand(4, 6)})
        >>> report = compact(model, optimizer, example_inputs=torch.randn(2, 6)).report
        >>> report.parameters, report.compacted_parameters
        (43, 33)
        >>> report.flops_ratio, report.share_reached
        (0.75, 1.0)
    """

    layers: tuple[LayerSizes, ...]
    remaining: tuple[Remaining, ...]
    parameters: int
    compacted_parameters: int
    left_out: tuple[str, ...] = ()

    @property
    def flops_ratio(self) -> float:
        """Multiplications of the smaller model over multiplications of the dense model.

        It is 1 if the report has no layers.
        """
        return self._ratio("compacted")

    @property
    def possible_flops_ratio(self) -> float:
        """The :attr:`flops_ratio` if every dropped channel could be removed independently."""
        return self._ratio("possible")

    @property
    def share_reached(self) -> float:
        """Saved multiplications over those that could be saved; 1 if nothing could be saved."""
        possible = 1 - self.possible_flops_ratio
        return (1 - self.flops_ratio) / possible if possible else 1.0

    def _ratio(self, which: str) -> float:
        before = _total(self.layers, "shape")
        return _total(self.layers, which) / before if before else 1.0

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers], default=0)
        lines = [f"{'layer':{width}}  {'before':>18}  {'after':>18}  {'possible':>18}"]
        lines += [
            f"{layer.name:{width}}  {_shape(layer.shape):>18}  {_shape(layer.compacted):>18}  "
            f"{_shape(layer.possible):>18}"
            for layer in self.layers
        ]
        lines += [
            f"parameters: {self.parameters} -> {self.compacted_parameters}",
            f"multiplications: {self.flops_ratio:.4f} of dense, {self.possible_flops_ratio:.4f} "
            f"possible: {100 * self.share_reached:.1f} % of the saving reached",
        ]
        if self.remaining:
            lines.append("not removed:")
        lines += [
            f"  {kept.name}, {len(kept.positions)} along dimension {kept.dim}: {kept.reason}"
            for kept in self.remaining
        ]
        if self.left_out:
            lines.append(f"weights without known channels: {', '.join(self.left_out)}")
        return "\n".join(lines)


def _total(layers: tuple[LayerSizes, ...], which: str) -> int:
    total = 0
    for layer in layers:
        weights = 1
        for size in getattr(layer, which):
            weights *= size
        total += weights * layer.multiplications
    return total


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
