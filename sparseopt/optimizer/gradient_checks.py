"""What a mask update has to know of gradients beforehand: infinities, and such that are zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import local, on_any_rank, sums_over_shards

__all__ = ["are_finite", "finite_norms", "zero_everywhere"]


def are_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether no gradient has an infinity or NaN, on any rank; waits for the device once."""
    return finite_norms(gradients) is not None


def finite_norms(gradients: Sequence[Tensor]) -> list[float] | None:
    """Return a norm of this rank's part of each gradient; waits for the device once.

    Returns:
        ``None`` if there is an infinity or NaN in any of them, on any rank.

    Example:
        >>> finite_norms([torch.tensor([3.0, 4.0]), torch.zeros(2)])
        [5.0, 0.0]
        >>> finite_norms([torch.tensor([3.0, float("inf")])]) is None
        True
    """
    # The 2-norm takes a CPU a fifteenth of the time, but may overflow where no entry does.
    norms = _norms(gradients, 2.0)
    if not all(map(math.isfinite, norms)):
        norms = _norms(gradients, math.inf)
    finite = all(map(math.isfinite, norms))
    return None if on_any_rank(not finite, gradients) else norms


def zero_everywhere(gradients: Sequence[Tensor], norms: Sequence[float]) -> frozenset[int]:
    """Return the ids of those gradients that are zero in every entry, on every rank.

    Args:
        gradients: the gradients.
        norms: what :func:`finite_norms` made of them.

    Example:
        >>> gradients = [torch.ones(2), torch.zeros(2)]
        >>> zero_everywhere(gradients, finite_norms(gradients)) == {id(gradients[1])}
        True
    """
    # A 2-norm may be zero where entries are tiny.
    doubtful = [index for index, norm in enumerate(norms) if norm == 0]
    maxima = _norms([gradients[index] for index in doubtful], math.inf)
    zeros = {index for index, largest in zip(doubtful, maxima, strict=True) if largest == 0}
    if not on_any_rank(bool(zeros), gradients):
        return frozenset()
    parts = [int(index not in zeros) for index in range(len(gradients))]
    counts = sums_over_shards(parts, gradients)
    return frozenset(
        id(gradient) for gradient, count in zip(gradients, counts, strict=True) if count == 0
    )


def _norms(gradients: Sequence[Tensor], order: float) -> list[float]:
    mine = [_values(local(gradient)) for gradient in gradients]
    device = mine[0].device if mine else None
    norms = [
        torch.linalg.vector_norm(values, order).to(device)
        if values.numel()
        else torch.zeros((), device=device)
        for values in mine
    ]
    return torch.stack(norms).tolist() if norms else []


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
