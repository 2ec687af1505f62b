"""Smaller tensors in the places of a model's own, and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.speedup.compaction.surgery import Kept, resize, shrunk, sizes_of
from sparseopt.utils.wrappers import canonical_name

__all__ = ["Lent", "ParameterSwap"]


@dataclass(frozen=True)
class Lent:
    """A parameter or buffer, and the smaller one that is lent in its place.

    Attributes:
        whole: the model's own.
        smaller: a part of its entries.
        kept: which they are: by dimension the positions, ascending.
    """

    whole: Tensor
    smaller: Tensor
    kept: Mapping[int, Tensor]

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the values of the whole into the smaller."""
        self.smaller.copy_(shrunk(self.whole, self.kept))

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the values of the smaller into the whole; its other entries stay."""
        self.write(self.whole, self.smaller)

    @torch.no_grad()
    def spread(self, values: Tensor) -> Tensor:
        """Return a tensor like the whole, with ``values``, like the smaller, among zeros."""
        spread = torch.zeros_like(self.whole, requires_grad=False)
        self.write(spread, values)
        return spread

    def write(self, whole: Tensor, values: Tensor) -> None:
        """Write ``values``, like the smaller, into a tensor like the whole."""
        last = max(self.kept)
        positions = [
            self.kept[dim] if dim in self.kept else torch.arange(whole.shape[dim], device="cpu")
            for dim in range(last + 1)
        ]
        index = tuple(
            one.to(whole.device).view(-1, *[1] * (last - dim)) for dim, one in enumerate(positions)
        )
        whole.detach()[index] = values.detach()


@dataclass(frozen=True)
class _Place:
    """One place of a module that has a smaller tensor now."""

    module: nn.Module
    own: MutableMapping[str, Any]
    name: str
    lent: Lent

    def take_out(self) -> None:
        # Forward may have put another buffer there.
        smaller, whole = self.own[self.name], self.lent.whole
        if smaller is whole:
            return
        if (smaller.device, smaller.dtype) != (whole.device, whole.dtype):
            # Meanwhile the model was moved, or brought into another precision.
            whole.data = whole.detach().to(smaller.device, smaller.dtype)
        self.lent.write(whole, smaller)
        if isinstance(whole, nn.Parameter):
            whole.requires_grad_(smaller.requires_grad)
        if smaller.grad is not None:
            whole.grad = self.lent.spread(smaller.grad)
            smaller.grad = None
        self.own[self.name] = whole


class ParameterSwap:
    """Puts smaller parameters and buffers into a model, and what became of them back.

    The model's modules stay what they are. The smaller tensors are the same each time, as long as
    their shapes are.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Tensor, Lent] = {}
        self._places: list[_Place] = []
        self._sizes: list[tuple[nn.Module, dict[str, int]]] = []

    @torch.no_grad()
    def put_in(self, kept: Kept) -> list[Lent]:
        """Cut tensors, and their gradients, and put them in the places of the whole ones.

        If it fails, :meth:`take_out` undoes what it did.

        Args:
            kept: by canonical name what is to stay of each.

        Returns:
            Each that was cut, with its smaller one.

        Raises:
            RuntimeError: if a smaller parameter was given a gradient while it was in no place.
        """
        self._refuse_lost_gradients()
        # All that needs memory comes first, while nothing is in any place.
        known = {
            whole: _lent(self._known.get(whole), whole, stays)
            for whole, stays in self._tensors_of(kept).items()
        }
        gradients = [
            (one, shrunk(one.whole.grad, one.kept))
            for one in known.values()
            if one.whole.grad is not None
        ]
        self._known = known
        self._places = self._places_of(known)
        modules = {id(place.module): place.module for place in self._places}.values()
        self._sizes = [(module, sizes_of(module)) for module in modules]
        for place in self._places:
            place.own[place.name] = place.lent.smaller
        for one, gradient in gradients:
            one.smaller.grad, one.whole.grad = gradient, None
        for module in modules:
            resize(module)
        return list(known.values())

    @torch.no_grad()
    def take_out(self) -> None:
        """Write smaller tensors, and their gradients, back, and put the whole ones in place."""
        for place in self._places:
            place.take_out()
        for module, sizes in self._sizes:
            vars(module).update(sizes)
        self._places, self._sizes = [], []

    def _tensors_of(self, kept: Kept) -> dict[Tensor, Mapping[int, Tensor]]:
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {
            tensor: kept[canonical_name(name)]
            for name, tensor in named
            if canonical_name(name) in kept
        }

    def _places_of(self, known: Mapping[Tensor, Lent]) -> list[_Place]:
        # A tied weight has one name and several places.
        return [
            _Place(module, own, name, known[tensor])
            for module in self._model.modules()
            for own in (module._parameters, module._buffers)
            for name, tensor in own.items()
            if tensor is not None and tensor in known
        ]

    def _refuse_lost_gradients(self) -> None:
        if any(one.smaller.grad is not None for one in self._known.values()):
            raise RuntimeError(
                "the model was made whole between a forward pass and its backward(), so this "
                "step's gradients are lost: save, copy and call whole() before the forward pass or "
                "after backward()."
            )


def _lent(before: Lent | None, whole: Tensor, kept: Mapping[int, Tensor]) -> Lent:
    """Return what is kept of ``whole``, in the smaller tensor of ``before`` if that fits."""
    kept = {dim: positions.to(whole.device) for dim, positions in kept.items()}
    values = shrunk(whole.detach(), kept)
    smaller = None if before is None else before.smaller
    if smaller is not None and _kind_of(smaller) == _kind_of(values):
        smaller.copy_(values)
    else:
        smaller = nn.Parameter(values, False) if isinstance(whole, nn.Parameter) else values
    if isinstance(whole, nn.Parameter):
        smaller.requires_grad_(whole.requires_grad)
    return Lent(whole, smaller, kept)


def _kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device
