"""SNIP: keep the connections that the loss is most sensitive to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.distributions import Init
from sparseopt.pruning_at_init.budget import make_budget
from sparseopt.pruning_at_init.saliency import (
    all_live,
    check_finite,
    gradients,
    make_losses,
    scoring_dtype,
    sparse_weights,
)
from sparseopt.utils.probe import preserve_model_state

__all__ = ["snip"]


def snip(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[tuple[Any, Any]] | None = None,
    *,
    density: float = 0.1,
    init: Init | None = None,
    dense: str | Iterable[str] = (),
) -> dict[str, Tensor]:
    r"""Return masks that keep the weights of largest sensitivity, for ``mask=``.

    .. math:: s = \left| \frac{\partial L}{\partial w}\, w \right|

    The gradient is summed over the batches before the magnitude is taken, so several batches
    of equal size give the same scores as one large batch. The model runs in its current mode, and
    is left as it was: weights, gradients, buffers, modes and random state.

    Args:
        model: the model, with the weights that training will start from; not wrapped in
            DistributedDataParallel.
        loss: a function of outputs and targets, such as :func:`torch.nn.functional.cross_entropy`;
            without ``batches`` a function of no arguments, which runs the model and returns the
            loss.
        batches: pairs of inputs and targets, on the model's device. The paper takes one batch.
        density: the share of live weights, over all layers together, in (0, 1].
        init: ``None`` compares scores across layers, as the paper does. Any other value that
            ``init=`` of :class:`SparseOptimizer` takes sets the live count of each layer, and
            scores are compared within the layer.
        dense: layers to leave out, by the name of the weight or its module: name those whose param
            group has ``density=False``.

    Returns:
        A bool mask of the weight's shape for each layer that :class:`SparseOptimizer` makes sparse,
        by name. Exactly ``round(density * numel)`` weights are live, and one or more in each layer.

    Raises:
        TypeError: if an argument has the wrong type or the loss is not a scalar.
        ValueError: if a density is out of range, a name is not known, a gradient is not finite, or
            weights with a score of 0 would be chosen by their position alone.
        NoSparseLayerError: if no weight can be sparse.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from sparseopt import SparseOptimizer, snip
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> batch = torch.randn(32, 8), torch.randint(4, (32,))
        >>> masks = snip(model, F.cross_entropy, [batch], density=0.25)
        >>> sum(int(mask.sum()) for mask in masks.values())
        48
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", mask=masks)
        >>> optimizer.density
        0.25

    Reference: Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", algorithm 1.
    """
    weights = sparse_weights(model, dense)
    budget = make_budget(weights, density, init)
    losses = make_losses(model, loss, batches)
    dtype = scoring_dtype(weights)
    total = {name: torch.zeros_like(weight, dtype=dtype) for name, weight in weights.items()}
    with preserve_model_state(model), torch.enable_grad():
        for evaluate in losses:
            for name, gradient in gradients(evaluate(), weights).items():
                total[name] += gradient
    scores = {name: (gradient * weights[name].detach()).abs() for name, gradient in total.items()}
    check_finite(scores, "the loss or its gradient isn't.")
    budget.refuse_zeros(scores)
    return budget.keep_highest(scores, among=all_live(weights))
