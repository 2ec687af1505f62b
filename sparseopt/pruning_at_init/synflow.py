"""SynFlow: keep the weights that carry the most flow from input to output, without any data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseopt.distributions import Init
from sparseopt.pruning_at_init.budget import make_budget
from sparseopt.pruning_at_init.saliency import all_live, check_finite, sparse_weights
from sparseopt.utils.probe import preserve_model_state
from sparseopt.utils.validation import check_count

__all__ = ["synaptic_flow", "synflow"]


def synflow(
    model: nn.Module,
    inputs: Tensor | Sequence[int],
    *,
    density: float = 0.1,
    rounds: int = 100,
    init: Init | None = None,
    dense: str | Iterable[str] = (),
) -> dict[str, Tensor]:
    r"""Return masks that keep the weights that carry the most flow, for ``mask=``.

    Every parameter and buffer is replaced by its magnitude, and the input is all ones. With
    :math:`R` the sum of the model's outputs, the score of a weight is

    .. math:: s = \left| \frac{\partial R}{\partial w}\, w \right|

    Round :math:`k` of :math:`n` scores the weights that are left and keeps the highest scores, down
    to a density of :math:`d^{k/n}`. The scores of a neuron's incoming weights add up to the scores
    of its outgoing weights. So the fewer weights a layer has left, the higher is the score of each,
    and no layer loses all its weights.

    Normalisation layers run in eval mode, as in the authors' code: they scale by their running
    statistics, which in a new model changes nothing. Numbers are float64 where the device has it,
    because flow through a deep network leaves the range of float32. They are float32 for a model
    that does not run in float64, such as a model that casts to float32 itself. The model is left as
    it was: weights, gradients, buffers, modes and random state.

    Args:
        model: the model, with the weights that training will start from; not wrapped in
            DistributedDataParallel.
        inputs: an input, or its shape including the batch, such as ``(1, 3, 32, 32)``. Only the
            shape matters.
        density: the share of live weights, over all layers together, in (0, 1].
        rounds: how many times to score, at least 1.
        init: ``None`` compares scores across layers, as the paper does. Any other value that
            ``init=`` of :class:`SparseOptimizer` takes sets the live count of each layer, and
            scores are compared within the layer.
        dense: layers to leave out, by the name of the weight or its module: name those whose param
            group has ``density=False``.

    Returns:
        A bool mask of the weight's shape for each layer that :class:`SparseOptimizer` makes sparse,
        by name. Exactly ``round(density * numel)`` weights are live, and one or more in each layer.

    Raises:
        TypeError: if an argument has the wrong type, or ``inputs`` has no floating-point numbers.
        ValueError: if a density or a size is out of range, a name is not known, the flow is not
            finite, or weights with a score of 0 would be chosen by their position alone.
        NoSparseLayerError: if no weight can be sparse.

    Example:
        >>> import torch
        >>> from sparseopt import synflow
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> masks = synflow(model, (1, 8), density=0.25)
        >>> sum(int(mask.sum()) for mask in masks.values())
        48

    Reference: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively
    conserving synaptic flow", algorithm 1.
    """
    weights = sparse_weights(model, dense)
    budget = make_budget(weights, density, init)
    check_count("rounds", rounds, minimum=1)
    ones = _ones_like(inputs, next(iter(weights.values())))
    masks = all_live(weights)
    for number in range(1, rounds + 1):
        scores, ones = _flow_with_fallback(model, ones, masks)
        if number == 1:
            # In later rounds scores are 0 where earlier rounds have dropped every path.
            budget.refuse_zeros(scores)
        masks = budget.keep_highest(scores, among=masks, progress=number / rounds)
    return masks


def _flow_with_fallback(
    model: nn.Module, ones: Tensor, masks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the scores, and the ones in the precision in which the model ran.

    A model that does not run in float64 is run again in float32.
    """
    try:
        return synaptic_flow(model, ones, masks), ones
    # Torch raises it if a tensor that the model itself made in float32 meets float64 weights.
    except RuntimeError:
        if ones.dtype is not torch.float64:
            raise
    ones = ones.float()
    return synaptic_flow(model, ones, masks), ones


def synaptic_flow(model: nn.Module, ones: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the score of each weight under ``masks``, by layer; dropped weights have zero.

    Args:
        model: the model.
        ones: its input.
        masks: bool masks of the weights' shapes, by layer.

    Raises:
        ValueError: if a score is not finite.
    """
    layers = {name: weight for name, weight in sparse_weights(model).items() if name in masks}
    dtype = ones.dtype
    values = {
        name: _magnitude(tensor, dtype)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    flowing = {}
    for layer, weight in layers.items():
        name = name_of[weight]
        flowing[layer] = torch.where(masks[layer], values[name], 0.0).requires_grad_()
        values[name] = flowing[layer]
    with (
        preserve_model_state(model),
        torch.enable_grad(),
        torch.autocast(ones.device.type, enabled=False),
    ):
        model.eval()
        outputs = torch.func.functional_call(model, values, (ones,))
        flow = torch.stack([out.sum() for out in tree_leaves(outputs) if _is_float(out)]).sum()
    found = torch.autograd.grad(flow, list(flowing.values()), materialize_grads=True)
    scores = {
        layer: (gradient * flowing[layer].detach()).abs()
        for layer, gradient in zip(flowing, found, strict=True)
    }
    check_finite(scores, f"the flow through the network leaves the range of {dtype}.")
    return scores


def _magnitude(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).abs() if tensor.is_floating_point() else tensor.clone()


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _ones_like(inputs: Tensor | Sequence[int], weight: Tensor) -> Tensor:
    device = weight.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(inputs, Tensor):
        if not inputs.is_floating_point():
            raise TypeError(
                f"inputs is a tensor of {inputs.dtype}: an input of ones needs floating-point "
                "numbers, which a model of token indices doesn't take."
            )
        return torch.ones(inputs.shape, dtype=dtype, device=device)
    return torch.ones(_shape(inputs), dtype=dtype, device=device)


def _shape(inputs: Sequence[int]) -> torch.Size:
    problem = (
        f"inputs={inputs!r} must be a tensor, or its shape including the batch, such as "
        "(1, 3, 32, 32)."
    )
    try:
        shape = torch.Size(inputs)
    except TypeError:
        raise TypeError(problem) from None
    if not shape or min(shape) < 1:
        raise ValueError(problem)
    return shape
