"""Swaps smaller parameters and buffers into a model, and the full ones back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.speedup.compaction.surgery import (
    Kept,
    encoders_in,
    put_sizes_back,
    resize,
    shrunk,
    sizes_of,
)
from sparseopt.speedup.compaction.written_numbers import Numbers, current_numbers, set_numbers
from sparseopt.utils.wrappers import canonical_name

__all__ = ["ParameterSwap", "SwappedTensor"]


@dataclass(frozen=True)
class SwappedTensor:
    """A parameter or buffer, and the smaller tensor that replaces it.

    Attributes:
        full: the model's own tensor.
        smaller: the tensor of the entries that are kept.
        kept: the positions of these entries by dimension, ascending.
    """

    full: Tensor
    smaller: Tensor
    kept: Mapping[int, Tensor]

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the values of the full tensor into the smaller tensor."""
        self.smaller.copy_(shrunk(self.full, self.kept))

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the smaller tensor's values into the full one; other entries do not change."""
        self.write(self.full, self.smaller)

    @torch.no_grad()
    def spread(self, values: Tensor) -> Tensor:
        """Return zeros like the full tensor, with ``values`` in the entries that are kept.

        ``values`` is a tensor like the smaller one.
        """
        spread = torch.zeros_like(self.full, requires_grad=False)
        self.write(spread, values)
        return spread

    def write(self, full: Tensor, values: Tensor) -> None:
        """Write ``values``, like the smaller tensor, into a tensor like the full one."""
        last = max(self.kept)
        positions = [
            self.kept[dim] if dim in self.kept else torch.arange(full.shape[dim], device="cpu")
            for dim in range(last + 1)
        ]
        index = tuple(
            kept.to(full.device).view(-1, *[1] * (last - dim)) for dim, kept in enumerate(positions)
        )
        full.detach()[index] = values.detach()


@dataclass(frozen=True)
class _Place:
    """One entry of a module's parameters or buffers that is a smaller tensor now."""

    module: nn.Module
    own: MutableMapping[str, Any]
    name: str
    swapped: SwappedTensor

    def swap_out(self) -> None:
        # A forward pass may have replaced the buffer.
        smaller, full = self.own[self.name], self.swapped.full
        if smaller is full:
            return
        if (smaller.device, smaller.dtype) != (full.device, full.dtype):
            # The model was moved, or cast to another precision.
            full.data = full.detach().to(smaller.device, smaller.dtype)
        self.swapped.write(full, smaller)
        if isinstance(full, nn.Parameter):
            full.requires_grad_(smaller.requires_grad)
        if smaller.grad is not None:
            full.grad = self.swapped.spread(smaller.grad)
            smaller.grad = None
        self.own[self.name] = full


class ParameterSwap:
    """Temporarily replaces parameters and buffers by smaller ones, and writes trained values back.

    The model keeps its modules. The smaller tensors are the same objects each time, as long as
    their shapes stay the same.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Tensor, SwappedTensor] = {}
        self._places: list[_Place] = []
        self._sizes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._numbers: Numbers = {}

    @torch.no_grad()
    def swap_in(self, kept: Kept, numbers: Numbers) -> list[SwappedTensor]:
        """Cut tensors and their gradients, and replace the full tensors by the smaller ones.

        If this fails half-way, :meth:`swap_out` restores the full tensors.

        Args:
            kept: the positions to keep of each tensor, by canonical name.
            numbers: the new values of attributes of modules.

        Returns:
            All tensors that were cut, each with its smaller tensor.

        Raises:
            RuntimeError: if a smaller parameter got a gradient while it was swapped out.
        """
        self._refuse_lost_gradients()
        # Everything that needs memory comes first, before any tensor is replaced.
        known = {
            full: _swapped(self._known.get(full), full, stays)
            for full, stays in self._tensors_of(kept).items()
        }
        gradients = [
            (one, shrunk(one.full.grad, one.kept))
            for one in known.values()
            if one.full.grad is not None
        ]
        self._known = known
        self._places = self._places_of(known)
        # Encoders come last, because they check the attention in them.
        changed = [*(place.module for place in self._places), *encoders_in(self._model)]
        modules = {id(module): module for module in changed}.values()
        self._sizes = [(module, sizes_of(module)) for module in modules]
        for place in self._places:
            place.own[place.name] = place.swapped.smaller
        for one, gradient in gradients:
            one.smaller.grad, one.full.grad = gradient, None
        self._numbers = current_numbers(self._model, numbers)
        set_numbers(self._model, numbers)
        for module in modules:
            resize(module)
        return list(known.values())

    @torch.no_grad()
    def swap_out(self) -> None:
        """Write smaller tensors and their gradients back, and restore the full tensors."""
        for place in self._places:
            place.swap_out()
        for module, sizes in self._sizes:
            put_sizes_back(module, sizes)
        set_numbers(self._model, self._numbers)
        self._places, self._sizes, self._numbers = [], [], {}

    def _tensors_of(self, kept: Kept) -> dict[Tensor, Mapping[int, Tensor]]:
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {
            tensor: kept[canonical_name(name)]
            for name, tensor in named
            if canonical_name(name) in kept
        }

    def _places_of(self, known: Mapping[Tensor, SwappedTensor]) -> list[_Place]:
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
                "the full model was restored between a forward pass and its backward(), so this "
                "step's gradients are lost: save, copy and call restore() before the forward pass "
                "or after backward()."
            )


def _swapped(
    before: SwappedTensor | None, full: Tensor, kept: Mapping[int, Tensor]
) -> SwappedTensor:
    """Return the kept part of ``full``, in the memory of ``before`` if its shape fits."""
    kept = {dim: positions.to(full.device) for dim, positions in kept.items()}
    values = shrunk(full.detach(), kept)
    smaller = None if before is None else before.smaller
    if smaller is not None and _kind_of(smaller) == _kind_of(values):
        smaller.copy_(values)
    else:
        smaller = nn.Parameter(values, False) if isinstance(full, nn.Parameter) else values
    if isinstance(full, nn.Parameter):
        smaller.requires_grad_(full.requires_grad)
    return SwappedTensor(full, smaller, kept)


def _kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device
