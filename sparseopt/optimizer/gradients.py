"""The hooks that mask gradients in ``backward()``, and checks of gradients for an update."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparseopt.distributed.dtensor import local, on_any_rank, sums_over_shards
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.layer_of_weight import hooks_on, mark_hook

__all__ = [
    "GradientFlag",
    "are_finite",
    "finite_norms",
    "mask_gradient",
    "mask_gradient_of",
    "owners_of",
    "reregister_hooks",
    "zero_everywhere",
]

#: The attribute of a hook that refers to the object that registered the hook.
OWNER: Final = "sparseopt_owner"


@dataclass
class GradientFlag:
    """Whether ``backward()`` leaves gradients dense; all hooks of an optimizer share this object.

    Attributes:
        dense_gradients: whether ``backward()`` leaves gradients dense now.
        has_masked: whether a gradient was masked since the last step or ``zero_grad()``.
        awaits_backward: whether ``backward()`` has not begun since the last forward pass that the
            method may have prepared.
        knows_masked: a function of a layer and its gradient that returns whether the gradient is
            masked already. The reference is weak, because weights hold hooks that refer to this
            object.
    """

    dense_gradients: bool = False
    has_masked: bool = False
    awaits_backward: bool = False
    knows_masked: weakref.WeakMethod[Callable[[SparseLayer, Tensor], bool]] | None = None

    def is_masked(self, layer: SparseLayer, gradient: Tensor) -> bool:
        """Whether ``gradient`` is known to be masked, because only live entries were computed."""
        known = None if self.knows_masked is None else self.knows_masked()
        return known is not None and known(layer, gradient)


class _MaskGradient:
    """Masks a weight's gradient when ``backward()`` has accumulated it.

    The reference to the layer is weak, because the layer refers to the weight, and the weight to
    this hook.
    """

    def __init__(self, layer: SparseLayer, flag: GradientFlag) -> None:
        self._layer = weakref.ref(layer)
        self._flag = flag

    def __call__(self, weight: Tensor) -> None:
        self._flag.awaits_backward = False
        layer = self._layer()
        gradient = weight.grad
        if layer is None or gradient is None or layer.is_full:
            return
        if gradient.layout != torch.strided:
            raise TypeError(
                f"the gradient of {layer.name!r} has layout {gradient.layout}: a layer whose "
                "gradients have a sparse layout (Embedding(sparse=True)) can only be kept dense, "
                "with density=False."
            )
        if self._flag.dense_gradients:
            return
        self._flag.has_masked = True
        if self._flag.is_masked(layer, gradient):
            return
        layer._follow_weight()
        layer._mask_(gradient)


def mask_gradient_of(layer: SparseLayer, flag: GradientFlag, owner: object) -> RemovableHandle:
    """Register the hook on a layer's weight; return the handle that removes it.

    The hook refers weakly to ``owner``, the object that the hook belongs to.

    ``torch.compile`` does not trace the hook: it would compile it again for every mask.
    """
    hook = torch.compiler.disable(_MaskGradient(layer, flag))  # type: ignore[no-untyped-call]
    mark_hook(hook, layer)
    setattr(hook, OWNER, weakref.ref(owner))
    weight = layer.weight
    trains = weight.requires_grad
    # torch refuses hooks on a frozen weight, which may be trained again later.
    weight.requires_grad_(True)
    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    weight.requires_grad_(trains)
    return handle


def mask_gradient(layer: SparseLayer) -> None:
    """Set the gradient of a layer's dropped weights to zero, in place unless others need it.

    A gradient that has a graph may be needed by another ``backward()``, and the entries of an
    expanded gradient share memory.
    """
    gradient = layer.weight.grad
    if gradient is None or layer.is_full:
        return
    if gradient.grad_fn is not None:
        layer.weight.grad = gradient.masked_fill(~layer.mask, 0.0)
        return
    if 0 in gradient.stride():
        layer.weight.grad = gradient = gradient.clone()
    layer._mask_(gradient)


def owners_of(weight: Tensor) -> list[Any]:
    """Return the owners of the hooks that mask the gradient of ``weight``, if they still exist."""
    owners = [getattr(hook, OWNER)() for hook, _ in hooks_on(weight)]
    return [owner for owner in owners if owner is not None]


def reregister_hooks(weight: Tensor) -> None:
    """Register the hooks of a weight again after its tensor was swapped.

    :func:`torch.utils.swap_tensors` keeps the dictionary of hooks, but not its registration with
    autograd; assigning the attribute registers it.
    """
    weight._post_accumulate_grad_hooks = weight._post_accumulate_grad_hooks


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
    # On a CPU the 2-norm takes a fifteenth of the time, but it may overflow where no entry does.
    norms = _norms(gradients, 2.0)
    if not all(map(math.isfinite, norms)):
        norms = _norms(gradients, math.inf)
    finite = all(map(math.isfinite, norms))
    return None if on_any_rank(not finite, gradients) else norms


def zero_everywhere(gradients: Sequence[Tensor], norms: Sequence[float]) -> frozenset[int]:
    """Return the ids of the gradients that are zero in every entry, on every rank.

    Args:
        gradients: the gradients.
        norms: the result of :func:`finite_norms` for them.

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
