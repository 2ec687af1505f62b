"""The figures and tables of ``flops()``, made from counted operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparseopt.flops.counter import Operations
from sparseopt.flops.training_cost import Prices, TrainingProgress, cost_ahead
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method, TrainingCost
from sparseopt.utils.validation import check_count

__all__ = ["FlopsReport", "LayerFlops", "inference_report", "make_report", "sample_count"]

#: Dimensions of an image, ``(C, H, W)``.
IMAGE_DIMENSIONS: Final = 3


@dataclass(frozen=True)
class LayerFlops:
    """Inference FLOPs per sample of one weight, its bias included.

    Attributes:
        name: the parameter's name.
        dense: with every weight live.
        sparse: with the present mask.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16, bias=False)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(sgd, model, density=0.25, total_steps=1000)
        >>> optimizer.flops(model, torch.zeros(1, 32)).layers
        (LayerFlops(name='weight', dense=1024.0, sparse=256.0),)
    """

    name: str
    dense: float
    sparse: float


@dataclass(frozen=True)
class FlopsReport:
    r"""FLOPs per sample, additions and multiplications together.

    Convolutions and linear maps count, as in the Micronet Challenge and Evci et al. 2020.
    Normalisation, activations, pooling and residual additions do not count. A training step is one
    forward pass and two backward passes. The figures are the operations that masks leave, not
    wall-clock time: hardware without support for unstructured sparsity computes more.

    ``print(report)`` shows the table by layer and the comparison.

    Attributes:
        inference_dense: one forward pass with every weight live, :math:`f_d`.
        inference_sparse: one forward pass with the present masks, :math:`f_s`.
        train_dense: one dense training step, :math:`3 f_d`.
        train_sparse: one training step by the method's formula.
        train_measured: one training step on average, over the masks and update steps of the run.
            Before the first step it equals ``train_sparse``.
        layers: inference FLOPs of each weight that the model used.
        density: live weights over all weights, of the layers in the model.
        computed: the part of ``inference_dense`` for weights that are computed from parameters and
            have no mask (weight norm, for example).
        steps: training steps so far.
        total_steps: the total number of training steps, if the horizon is known.
        train_so_far: training so far, ``steps * train_measured``. Multiply by the samples in the
            batch of a step for the FLOPs of the run.
        train_expected: training to the horizon, ``train_so_far`` included. The remaining steps are
            counted with the live counts that the method plans. ``None`` if the horizon is not
            known, or as long as the method has updates ahead that change live counts without a plan
            (SNFS, RigL-SG, RigL-SM, and MEST with the soft bound).

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16, bias=False)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(sgd, model, method="set", density=0.25, total_steps=1000)
        >>> report = optimizer.flops(model, torch.zeros(1, 32))
        >>> report.inference_dense, report.inference_sparse, report.train_sparse, report.train_ratio
        (1024.0, 256.0, 768.0, 0.25)
    """

    inference_dense: float
    inference_sparse: float
    train_dense: float
    train_sparse: float
    train_measured: float
    layers: tuple[LayerFlops, ...]
    density: float = 1.0
    computed: float = 0.0
    steps: int = 0
    total_steps: int | None = None
    train_so_far: float = 0.0
    train_expected: float | None = None

    def __str__(self) -> str:
        return f"{self.table()}\n{self.comparison()}"

    @property
    def inference_ratio(self) -> float:
        """``inference_sparse / inference_dense``."""
        return self.inference_sparse / self.inference_dense

    @property
    def train_ratio(self) -> float:
        """``train_sparse / train_dense``."""
        return self.train_sparse / self.train_dense

    @property
    def train_measured_ratio(self) -> float:
        """``train_measured / train_dense``."""
        return self.train_measured / self.train_dense

    @property
    def train_expected_ratio(self) -> float | None:
        """``train_expected`` over the FLOPs of as many dense steps, or ``None`` if unknown."""
        if self.train_expected is None or self.total_steps is None:
            return None
        return self.train_expected / (max(self.steps, self.total_steps) * self.train_dense)

    @property
    def small_dense_ratio(self) -> float:
        r"""The approximate cost of a small dense network of as many weights, relative to dense.

        It holds for inference and training, and is the density :math:`d`: with every width
        multiplied by :math:`\sqrt{d}`, a layer has :math:`d` times the weights and FLOPs. The first
        and the last layer have more, because only one side of them becomes narrower.
        """
        return self.density

    def table(self) -> str:
        """Return a table of inference FLOPs by layer."""
        return layer_table(self)

    def comparison(self) -> str:
        """Return one line that compares with dense training, and with a small dense network."""
        return comparison_line(self)

    def as_dict(self, *, layers: bool = True) -> dict[str, Any]:
        """Return all figures and ratios as plain numbers, ready for any tracker or JSON.

        Unknown figures are left out.

        Args:
            layers: whether to add ``"layers"``, a list with a dictionary for each layer. If not,
                every value is a number.

        Example:
            >>> report = FlopsReport(8.0, 2.0, 24.0, 6.0, 6.0, (), density=0.25)
            >>> report.as_dict(layers=False)["inference_ratio"]
            0.25
        """
        figures = {
            **asdict(self),
            "inference_ratio": self.inference_ratio,
            "train_ratio": self.train_ratio,
            "train_measured_ratio": self.train_measured_ratio,
            "train_expected_ratio": self.train_expected_ratio,
            "small_dense_ratio": self.small_dense_ratio,
        }
        del figures["layers"]
        known = {name: value for name, value in figures.items() if value is not None}
        return {**known, "layers": [asdict(layer) for layer in self.layers]} if layers else known


def sample_count(inputs: Any, given: int | None) -> int:
    """Return the batch size: the length of the first tensor, or list of samples, among ``inputs``.

    Args:
        inputs: the arguments of the model.
        given: the batch size, if the user gave it.

    Raises:
        TypeError: if ``given`` is not a whole number.
        ValueError: if ``given`` is not positive, no tensor has a dimension, or the first tensor
            with one is empty.
    """
    if given is not None:
        return check_count("samples", given, minimum=1)
    for leaf in tree_leaves(inputs, is_leaf=_is_list_of_samples):
        if _is_list_of_samples(leaf):
            return len(leaf)
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            if not leaf.shape[0]:
                raise ValueError(
                    f"flops() needs at least one sample, but the first input has shape "
                    f"{tuple(leaf.shape)}."
                )
            return leaf.shape[0]
    raise ValueError(
        "flops() needs an input tensor whose first dimension is the batch, but no input is such a "
        "tensor: pass samples=, the number of samples in the input."
    )


def _is_list_of_samples(value: Any) -> bool:
    """Whether ``value`` is a list of images, ``(C, H, W)``, or of sequences of several lengths.

    Batches of several kinds, such as the maps of a feature pyramid, may be in a list too: they
    have the same first dimension.
    """
    if not isinstance(value, list) or not all(isinstance(one, Tensor) for one in value):
        return False
    if len({one.dim() for one in value}) != 1 or not value[0].dim():
        return False
    return value[0].dim() == IMAGE_DIMENSIONS or len({len(one) for one in value}) > 1


def inference_report(operations: Operations, *, samples: int, density: float) -> FlopsReport:
    """Make the report of a model with fixed masks from one forward pass.

    Args:
        operations: the operations, by the parameter's name in the model.
        samples: the batch size of the forward pass.
        density: live weights over all weights, of the weights that have masks.

    Raises:
        ValueError: if there was no operation.
    """
    layers = tuple(
        LayerFlops(
            name=name,
            dense=(dense + operations.bias[name]) / samples,
            sparse=(operations.sparse[name] + operations.live_bias[name]) / samples,
        )
        for name, dense in operations.dense.items()
    )
    computed = operations.unnamed / samples
    dense = computed + sum(layer.dense for layer in layers)
    sparse = computed + sum(layer.sparse for layer in layers)
    if not dense:
        raise ValueError(
            "the FLOPs are 0, because the forward pass used no convolution and no linear map: does "
            "the model use its weights in eval mode and with these inputs?"
        )
    return FlopsReport(
        inference_dense=dense,
        inference_sparse=sparse,
        train_dense=3.0 * dense,
        train_sparse=3.0 * sparse,
        train_measured=3.0 * sparse,
        layers=layers,
        density=density,
        computed=computed,
    )


def make_report(
    operations: Operations,
    *,
    samples: int,
    found: Mapping[str, SparseLayer],
    layers: Mapping[str, SparseLayer],
    method: Method,
    progress: TrainingProgress,
) -> FlopsReport:
    """Make the report of a training run from the operations of one forward pass.

    Args:
        operations: the operations, by the parameter's name in the model.
        samples: the batch size of the forward pass.
        found: the layers in the model, by the parameter's name in the model.
        layers: all layers by their own names.
        method: the optimizer's method.
        progress: the progress of training.

    Raises:
        ValueError: if there was no operation.
    """
    inference = inference_report(operations, samples=samples, density=_density(found))
    dense, sparse = inference.inference_dense, inference.inference_sparse
    usage = progress.usage.advanced(progress.steps, list(layers.values()))
    prices = _prices(operations, samples, found, dense=dense, sparse=sparse)
    so_far = prices.training(usage)
    mean = (
        prices.inference(usage.live_steps, usage.counted) / usage.counted
        if usage.counted
        else sparse
    )
    formula = method.train_flops(TrainingCost(dense, sparse, mean, progress.schedule.delta_t))
    ahead = cost_ahead(prices, layers, method, progress)
    return replace(
        inference,
        train_sparse=formula,
        train_measured=so_far / usage.counted if usage.counted else formula,
        steps=progress.steps,
        total_steps=progress.total_steps,
        train_so_far=so_far,
        train_expected=None if ahead is None else so_far + ahead,
    )


def _prices(
    operations: Operations,
    samples: int,
    found: Mapping[str, SparseLayer],
    *,
    dense: float,
    sparse: float,
) -> Prices:
    """Return the cost per live weight of each layer: its cost is proportional to its live count.

    All other costs are in ``fixed``.
    """
    masked = {name: layer for name, layer in found.items() if name in operations.sparse}
    return Prices(
        dense=dense,
        fixed=sparse - sum(operations.sparse[name] for name in masked) / samples,
        per_live={
            layer.name: operations.sparse[name] / samples / layer.live
            for name, layer in masked.items()
        },
    )


def _density(found: Mapping[str, SparseLayer]) -> float:
    numel = sum(layer.numel for layer in found.values())
    return sum(layer.live for layer in found.values()) / numel if numel else 1.0


HEADER: Final = ("layer", "dense", "sparse", "ratio", "share")


def layer_table(report: FlopsReport) -> str:
    """Return a table of inference FLOPs by layer, with each layer's share of the sparse total."""
    rows = [(layer.name, layer.dense, layer.sparse) for layer in report.layers]
    if report.computed:
        rows.append(("(computed weights)", report.computed, report.computed))
    total = ("total", report.inference_dense, report.inference_sparse)
    cells = [
        HEADER,
        *(
            (
                name,
                f"{dense:,.0f}",
                f"{sparse:,.0f}",
                f"{sparse / dense:.4f}" if dense else "-",
                f"{sparse / report.inference_sparse:.4f}",
            )
            for name, dense, sparse in (*rows, total)
        ),
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def comparison_line(report: FlopsReport) -> str:
    """Return one line: the cost of this run and of a small dense network, relative to dense."""
    parts = [f"inference {report.inference_ratio:.3f}x"]
    if report.steps:
        parts.append(f"training {report.train_measured_ratio:.3f}x in {report.steps:,} steps")
    else:
        parts.append(f"training {report.train_ratio:.3f}x")
    if report.train_expected_ratio is not None:
        parts.append(f"{report.train_expected_ratio:.3f}x over all {report.total_steps:,} steps")
    return (
        f"{', '.join(parts)}, of the dense network's FLOPs; "
        f"a small dense network of as many weights: about {report.small_dense_ratio:.3f}x"
    )
