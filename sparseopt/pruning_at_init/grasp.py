"""GraSP: drop the weights whose removal harms the gradient flow least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseopt.distributions import Init
from sparseopt.pruning_at_init.budget import make_budget
from sparseopt.pruning_at_init.saliency import (
    Losses,
    all_live,
    check_finite,
    gradients,
    make_losses,
    scoring_dtype,
    sparse_weights,
)
from sparseopt.utils.probe import preserve_model_state

__all__ = ["grasp"]

#: The authors' code divides logits by this number.
TEMPERATURE: Final = 200.0


def grasp(
    model: nn.Module,
    loss: Callable[..., Tensor],
    batches: Iterable[tuple[Any, Any]] | None = None,
    *,
    density: float = 0.1,
    temperature: float | None = None,
    init: Init | None = None,
    dense: str | Iterable[str] = (),
) -> dict[str, Tensor]:
    r"""Return masks that keep the most gradient flow, for ``mask=``.

    GraSP drops the weights with the largest score

    .. math:: s = -w \cdot (H g), \qquad g = \frac{\partial L}{\partial w},\;
        H = \frac{\partial^2 L}{\partial w^2}

    because without them :math:`g^T g` grows, or falls the least. Loss and gradient are summed over
    all batches. The model runs in its current mode, and is left as it was: weights, gradients,
    buffers, modes and random state.

    Args:
        model: the model, with the weights that training will start from; not wrapped in
            DistributedDataParallel.
        loss: a function of outputs and targets, such as :func:`torch.nn.functional.cross_entropy`;
            without ``batches`` a function of no arguments, which runs the model and returns the
            loss. It is called twice.
        batches: pairs of inputs and targets, on the model's device. The authors take 25 samples of
            each class: :func:`balanced_batch` collects them.
        density: the share of live weights, over all layers together, in (0, 1].
        temperature: the number that outputs are divided by before the loss, 200 by default. A loss
            of no arguments has to do that itself.
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
        ValueError: if a density or the temperature is out of range, a name is not known, a gradient
            is not finite, or weights with a score of 0 would be chosen by their position alone.
        NoSparseLayerError: if no weight can be sparse.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from sparseopt import balanced_batch, grasp
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> data = [(torch.randn(32, 8), torch.arange(32) % 4)]
        >>> batch = balanced_batch(data, classes=4, per_class=5)
        >>> masks = grasp(model, F.cross_entropy, [batch], density=0.25)
        >>> sum(int(mask.sum()) for mask in masks.values())
        48

    Reference: Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow", algorithm 1; temperature and samples after the authors' code.
    """
    weights = sparse_weights(model, dense)
    budget = make_budget(weights, density, init)
    losses = make_losses(
        model, loss, batches, temperature=_checked(temperature, closure=batches is None)
    )
    with preserve_model_state(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        products = _hessian_times_gradient(losses, weights)
    # Dropping the largest -w * Hg is keeping the largest w * Hg.
    scores = {name: product * weights[name].detach() for name, product in products.items()}
    check_finite(scores, "the loss or one of its derivatives isn't.")
    budget.refuse_zeros(scores)
    return budget.keep_highest(scores, among=all_live(weights))


def _hessian_times_gradient(
    losses: Losses, weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the product of Hessian and gradient of the loss, summed over the batches.

    The first pass sums the gradient ``g``. The second pass differentiates the dot product of each
    batch's gradient and the constant ``g``, which is the Hessian of the batch times ``g``. Only
    the graph of one batch is in memory.
    """
    dtype = scoring_dtype(weights)
    gradient = {name: torch.zeros_like(weight, dtype=dtype) for name, weight in weights.items()}
    product = {name: torch.zeros_like(weight, dtype=dtype) for name, weight in weights.items()}
    for evaluate in losses:
        for name, part in gradients(_repeatable(evaluate, weights), weights).items():
            gradient[name] += part
    for evaluate in losses:
        parts = gradients(_repeatable(evaluate, weights), weights, create_graph=True)
        products = [(parts[name] * gradient[name]).sum() for name in weights]
        # The weights of one model may be on several devices.
        dot = torch.stack([one.to(products[0].device) for one in products]).sum()
        if dot.requires_grad:
            for name, part in gradients(dot, weights).items():
                product[name] += part
    return product


def _repeatable(evaluate: Callable[[], Tensor], weights: Mapping[str, nn.Parameter]) -> Tensor:
    """Evaluate with the same random numbers each time, so that dropout drops the same."""
    devices = sorted({w.device.index for w in weights.values() if w.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        return evaluate()


def _checked(temperature: object, *, closure: bool) -> float:
    if temperature is None:
        return TEMPERATURE
    if closure:
        raise ValueError(
            f"temperature={temperature!r} has no effect on a loss of no arguments: divide the "
            "model's outputs by it inside the loss."
        )
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature={temperature!r} must be a positive number, or None.")
    if not float(temperature) > 0:
        raise ValueError(f"temperature={temperature!r} must be positive.")
    return float(temperature)
