"""What a compaction took out, what it could not and why, and how much of the saving it reached."""

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
        possible: its shape if every channel that masks took out could go by itself.
        multiplications: how often each weight was multiplied in the run that was looked at.

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
    """Positions of a weight that its mask took out whole, and that are still in the model.

    Attributes:
        name: the weight's name.
        dim: the dimension of the weight that they lie along: filters and neurons, or input columns.
        positions: which ones, in the weight as it was.
        reason: why they cannot go.

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
    """What became of a model.

    ``str(report)`` is a table. All ratios are to the dense model.

    Attributes:
        layers: every weight that is multiplied with channels, in the model's order.
        remaining: what masks took out whole and could not be removed.
        parameters: number of parameters before.
        compacted_parameters: number of parameters after.
        left_out: sparse weights whose module has no channels that are known, such as recurrent
            layers, embeddings and computed weights; they stay as they are.

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
        """Multiplications of the smaller model over multiplications of the dense model."""
        return _total(self.layers, "compacted") / _total(self.layers, "shape")

    @property
    def possible_flops_ratio(self) -> float:
        """What :attr:`flops_ratio` would be if every dropped channel could go by itself."""
        return _total(self.layers, "possible") / _total(self.layers, "shape")

    @property
    def share_reached(self) -> float:
        """Multiplications saved over those that could be; 1 if there is nothing to save."""
        possible = 1 - self.possible_flops_ratio
        return (1 - self.flops_ratio) / possible if possible else 1.0

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
            f"  {one.name}, {len(one.positions)} along dimension {one.dim}: {one.reason}"
            for one in self.remaining
        ]
        if self.left_out:
            lines.append(f"no channels are known of: {', '.join(self.left_out)}")
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
