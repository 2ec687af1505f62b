"""Smaller tensors in the places of a model's own, and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.compaction.surgery import Kept, resize, shrunk
from sparseopt.discovery import canonical_name

__all__ = ["LentTensors"]


@dataclass(frozen=True)
class _Place:
    """One place of a module that has a smaller tensor now."""

    module: nn.Module
    own: MutableMapping[str, Any]
    name: str
    whole: Tensor
    kept: Mapping[int, Tensor]


class LentTensors:
    """Puts smaller parameters and buffers into a model, and what became of them back.

    The model's modules stay what they are. The smaller tensors are the same each time, as long as
    their shapes are.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._smaller: dict[Tensor, Tensor] = {}
        self._places: list[_Place] = []

    @torch.no_grad()
    def put_in(self, kept: Kept) -> dict[Tensor, Tensor]:
        """Cut tensors, and their gradients, and put them in the places of the whole ones.

        Args:
            kept: by canonical name what is to stay of each.

        Returns:
            The smaller tensor of each that was cut.

        Raises:
            RuntimeError: if a smaller parameter was given a gradient while it was in no place.
        """
        self._refuse_lost_gradients()
        self._places = self._places_of(kept)
        before, self._smaller = self._smaller, {}
        for place in self._places:
            if place.whole not in self._smaller:
                smaller = _filled(before.get(place.whole), place.whole, place.kept)
                self._smaller[place.whole] = smaller
            place.own[place.name] = self._smaller[place.whole]
        self._resize()
        return dict(self._smaller)

    @torch.no_grad()
    def take_out(self) -> None:
        """Write smaller tensors, and their gradients, back, and put the whole ones in place."""
        for place in self._places:
            smaller = place.own[place.name]
            _write(place.whole, smaller, place.kept)
            _move_gradient(smaller, place.whole, place.kept)
            place.own[place.name] = place.whole
        self._resize()
        self._places = []

    def _places_of(self, kept: Kept) -> list[_Place]:
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        # A tied weight has one name and several places.
        kept_of = {
            tensor: kept[canonical_name(name)]
            for name, tensor in named
            if canonical_name(name) in kept
        }
        return [
            _Place(module, own, name, tensor, kept_of[tensor])
            for module in self._model.modules()
            for own in (module._parameters, module._buffers)
            for name, tensor in own.items()
            if tensor is not None and tensor in kept_of
        ]

    def _resize(self) -> None:
        for module in {id(place.module): place.module for place in self._places}.values():
            resize(module)

    def _refuse_lost_gradients(self) -> None:
        if any(tensor.grad is not None for tensor in self._smaller.values()):
            raise RuntimeError(
                "the model was made whole between a forward pass and its backward(), so this "
                "step's gradients are lost: save, copy and call whole() before the forward pass or "
                "after backward()."
            )


def _filled(smaller: Tensor | None, whole: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Return what is kept of ``whole``, with its gradient, in ``smaller`` if that fits."""
    values = shrunk(whole.detach(), kept)
    if smaller is not None and smaller.shape == values.shape:
        smaller.copy_(values)
    elif isinstance(whole, nn.Parameter):
        smaller = nn.Parameter(values, requires_grad=whole.requires_grad)
    else:
        smaller = values
    if whole.grad is not None:
        smaller.grad = shrunk(whole.grad, kept)
        whole.grad = None
    return smaller


def _move_gradient(smaller: Tensor, whole: Tensor, kept: Mapping[int, Tensor]) -> None:
    if smaller.grad is not None:
        whole.grad = torch.zeros_like(whole, requires_grad=False)
        _write(whole.grad, smaller.grad, kept)
        smaller.grad = None


def _write(whole: Tensor, smaller: Tensor, kept: Mapping[int, Tensor]) -> None:
    """Write into the positions of ``whole`` that are kept."""
    last = max(kept)
    positions = [
        kept[dim] if dim in kept else torch.arange(whole.shape[dim], device="cpu")
        for dim in range(last + 1)
    ]
    index = tuple(
        one.to(whole.device).view(-1, *[1] * (last - dim)) for dim, one in enumerate(positions)
    )
    whole.detach()[index] = smaller.detach()
