"""Gradients that a method accumulates between updates.

A method has a frozen :class:`GradientMemory`, the rule *how* to accumulate. The optimizer holds the
result, one tensor per layer, and adds to it once a step: in ``step()``, not in ``backward()``. Only
then is the gradient accumulated over micro-batches, averaged over ranks and unscaled, and a step
that ``GradScaler`` skips is not added. So wherever the memory needs dense gradients, they stay
dense between ``backward()`` and ``step()``, as on the update steps of RigL, and clipping sees the
norm of the dense gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import local, shard_like
from sparseopt.masks.layer import SparseLayer
from sparseopt.utils.deprecation import renamed_fields
from sparseopt.utils.validation import check_decay, check_steps

__all__ = ["Accumulated", "AccumulatedGradients", "GradientMemory", "Smoothed"]


@dataclass(frozen=True)
class GradientMemory(ABC):
    """A rule that combines the gradients of many steps into one tensor per layer.

    Args:
        dense: whether gradients of weights that are not live are accumulated too.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from sparseopt import GradientMemory
        >>> @dataclass(frozen=True)
        ... class SumOfSquares(GradientMemory):
        ...     @property
        ...     def steps(self):
        ...         return None
        ...     def add_(self, held, gradient):
        ...         held.addcmul_(gradient, gradient)
        >>> held = torch.zeros(2)
        >>> SumOfSquares().add_(held, torch.tensor([1.0, -2.0]))
        >>> held
        tensor([1., 4.])
    """

    dense: bool = field(default=True, kw_only=True)

    @property
    @abstractmethod
    def steps(self) -> int | None:
        """How many steps are accumulated for an update, its own included; ``None`` for all."""

    @abstractmethod
    def add_(self, held: Tensor, gradient: Tensor) -> None:
        """Add the gradient of one step to ``held``, which starts at zero, in place.

        Both have the weight's shape; if the weight is sharded, the shape of this rank's part.
        """


@renamed_fields(decay="beta")
@dataclass(frozen=True)
class Smoothed(GradientMemory):
    r"""The exponential moving average of the gradient: its momentum.

    .. math:: m \leftarrow \beta\, m + (1 - \beta)\, g

    Every step adds its gradient until masks stop moving.

    Args:
        dense: whether gradients of weights that are not live are accumulated too; if not, these
            gradients count as 0.
        beta: :math:`\beta`, in [0, 1).

    Raises:
        TypeError: if ``beta`` is not a number.
        ValueError: if it is out of range.

    Example:
        >>> from sparseopt import RigL
        >>> RigL(gradient=Smoothed(beta=0.9)).memory
        Smoothed(dense=True, beta=0.9)

    Reference: Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch", section 3.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        check_decay("beta", self.beta)

    @property
    def steps(self) -> int | None:
        """``None``: all steps."""
        return None

    def add_(self, held: Tensor, gradient: Tensor) -> None:
        """Move ``held`` a little towards ``gradient``."""
        held.mul_(self.beta).add_(gradient, alpha=1.0 - self.beta)


@dataclass(frozen=True)
class Accumulated(GradientMemory):
    """The sum of the gradients of the last steps up to an update, its own included.

    The sum ranks weights as the average does. No gradient counts for two updates, so only gradients
    since the last update are summed. All other steps cost nothing.

    Args:
        dense: whether gradients of weights that are not live are accumulated too.
        last: how many steps are summed, the update's own included.

    Raises:
        TypeError: if ``last`` is not a whole number.
        ValueError: if it is not positive.

    Example:
        >>> from sparseopt import Accumulated, RigL
        >>> RigL(gradient=Accumulated(last=10)).memory
        Accumulated(dense=True, last=10)
    """

    last: int = 10

    def __post_init__(self) -> None:
        check_steps("last", self.last, minimum=1)

    @property
    def steps(self) -> int | None:
        """``last``."""
        return self.last

    def add_(self, held: Tensor, gradient: Tensor) -> None:
        """Add ``gradient`` to ``held``."""
        held.add_(gradient)


class AccumulatedGradients:
    """Accumulated gradients: one tensor per layer, in at least single precision.

    No memory is taken before the first gradients are added.

    Args:
        rule: how to accumulate.
    """

    def __init__(self, rule: GradientMemory) -> None:
        self.rule = rule
        self._held: dict[str, Tensor] = {}

    @torch.no_grad()
    def feed(self, layers: Iterable[SparseLayer]) -> None:
        """Add the present gradients of the weights; layers without a gradient are left out."""
        for layer in layers:
            gradient = layer.weight.grad
            if layer.is_dense or gradient is None:
                continue
            gradient = local(gradient)
            if not self.rule.dense:
                gradient = torch.where(local(layer.mask), gradient, 0.0)
            self.rule.add_(local(self.of(layer)), gradient)

    def of(self, layer: SparseLayer) -> Tensor:
        """Return the accumulated gradient of a layer, of the weight's shape; zeros at first."""
        held = shard_like(self.saved(layer).to(layer.weight.device), layer.weight)
        self._held[layer.name] = held
        return held

    def saved(self, layer: SparseLayer) -> Tensor:
        """Return the tensor that a checkpoint saves for a layer.

        It is zeros if nothing is accumulated: distributed checkpointing loads only the tensors that
        a new optimizer has.
        """
        held = self._held.get(layer.name)
        if held is not None:
            return held
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        return torch.zeros_like(layer.weight, dtype=dtype, requires_grad=False)

    def restore(self, layer: SparseLayer, held: Tensor | None) -> None:
        """Load the tensor that :meth:`saved` returned; ``None`` stands for zeros."""
        self._held.pop(layer.name, None)
        if held is not None:
            self.of(layer).copy_(shard_like(held, layer.weight))

    def forget(self) -> None:
        """Start again from zero, and free the memory."""
        self._held.clear()
