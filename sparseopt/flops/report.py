"""From counted operations to the figures of ``flops()``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparseopt.flops.counting import Operations
from sparseopt.layers import SparseLayer
from sparseopt.methods.base import Method, TrainingCost
from sparseopt.usage import Usage

__all__ = ["FlopsReport", "LayerFlops", "make_report", "sample_count"]


@dataclass(frozen=True)
class LayerFlops:
    """Inference FLOPs per sample of one weight, its bias included.

    Attributes:
        name: the parameter's name.
        dense: with every weight live.
        sparse: with the mask as it is.
    """

    name: str
    dense: float
    sparse: float


@dataclass(frozen=True)
class FlopsReport:
    r"""FLOPs per sample, additions and multiplications together.

    Counted are convolutions and linear maps, as in the Micronet Challenge and Evci et al. 2020;
    normalisation, activations, pooling and residual additions are not. A training step is one pass
    forward and two backward. Support for unstructured sparsity is assumed: these are the
    operations that masks leave, not wall-clock time.

    Attributes:
        inference_dense: one forward pass with every weight live, :math:`f_d`.
        inference_sparse: one forward pass with the masks as they are, :math:`f_s`.
        train_dense: one dense training step, :math:`3 f_d`.
        train_sparse: one training step by the method's formula.
        train_measured: one training step on average, over the masks and update steps that really
            were; before the first step, the formula's.
        layers: the same for each weight.
    """

    inference_dense: float
    inference_sparse: float
    train_dense: float
    train_sparse: float
    train_measured: float
    layers: tuple[LayerFlops, ...]

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

    def as_dict(self) -> dict[str, Any]:
        """Return all figures and ratios as plain numbers, ready for any tracker or JSON."""
        return {
            **asdict(self),
            "layers": [asdict(layer) for layer in self.layers],
            "inference_ratio": self.inference_ratio,
            "train_ratio": self.train_ratio,
            "train_measured_ratio": self.train_measured_ratio,
        }


def sample_count(inputs: Any) -> int:
    """Return the batch size: the length of the first tensor among ``inputs``.

    Raises:
        ValueError: if there is none of at least one dimension.
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    raise ValueError(
        "flops() needs an input tensor whose first dimension is the batch, but none of the inputs "
        "is one."
    )


def make_report(
    operations: Operations,
    *,
    samples: int,
    layers: Sequence[SparseLayer],
    method: Method,
    usage: Usage,
    delta_t: int,
) -> FlopsReport:
    """Put a report together from the operations of one forward pass over ``samples`` samples."""
    by_layer = tuple(
        LayerFlops(
            name=name,
            dense=(dense + operations.bias[name]) / samples,
            sparse=(operations.sparse[name] + operations.bias[name]) / samples,
        )
        for name, dense in operations.dense.items()
    )
    rest = operations.unnamed / samples
    dense = rest + sum(layer.dense for layer in by_layer)
    sparse = rest + sum(layer.sparse for layer in by_layer)
    mean = _mean_sparse(operations, samples, layers, usage, sparse)
    formula = method.train_flops(TrainingCost(dense, sparse, mean, delta_t))
    measured = formula
    if usage.counted:
        measured = 3.0 * mean + usage.dense_gradients / usage.counted * (dense - mean)
    return FlopsReport(dense, sparse, 3.0 * dense, formula, measured, by_layer)


def _mean_sparse(
    operations: Operations,
    samples: int,
    layers: Sequence[SparseLayer],
    usage: Usage,
    sparse: float,
) -> float:
    """Return the average of the sparse inference FLOPs over the steps so far."""
    if not usage.counted:
        return sparse
    mean = sparse
    for layer in layers:
        if layer.name in operations.sparse:
            mean_live = usage.live_steps.get(layer.name, 0) / usage.counted
            now = operations.sparse[layer.name] / samples
            mean += now * (mean_live / layer.live - 1.0)
    return mean
