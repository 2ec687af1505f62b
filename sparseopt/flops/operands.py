"""Finds the weight that an operand is: by its memory in an operator, by its name in a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from sparseopt.distributed.dtensor import full_tensor, is_sharded
from sparseopt.masks.layer import SparseLayer
from sparseopt.utils.wrappers import canonical_name

__all__ = ["WeightMemory", "layers_in"]


def layers_in(model: nn.Module, layers: Sequence[SparseLayer]) -> dict[str, SparseLayer]:
    """Return the layers whose weights ``model`` has, by the parameter's name in ``model``.

    A parameter is a layer's weight if it is the same object, or, in a copy of the model, if it has
    the same name and shape.

    Raises:
        ValueError: if ``model`` has no weight of ``layers``.
    """
    by_weight = {layer.weight: layer for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    found = {}
    for full_name, parameter in model.named_parameters():
        name = canonical_name(full_name)
        layer = by_weight.get(parameter)
        if layer is None and name in by_name and by_name[name].weight.shape == parameter.shape:
            layer = by_name[name]
        if layer is not None:
            found[name] = layer
    if layers and not found:
        raise ValueError(
            f"model={type(model).__name__}(...) has no weight that this optimizer trains, neither "
            f"the same object nor the same name: {', '.join(by_name)}. Pass the model of the "
            "optimizer, or a copy of it."
        )
    return found


@dataclass(frozen=True)
class _Owner:
    """A weight or a copy of it.

    Invariant: strides of the mask are strides of the tensor, so views of both correspond.

    Attributes:
        name: the name of the weight.
        tensor: the weight, or its copy.
        mask: the mask of the tensor's entries; ``None`` if all are live.
    """

    name: str
    tensor: Tensor
    mask: Tensor | None

    def mask_of(self, view: Tensor) -> Tensor | None:
        """Return the mask of the entries that a view of the tensor shows."""
        if self.mask is None:
            return None
        offset = int(view.storage_offset() - self.tensor.storage_offset())
        offset += int(self.mask.storage_offset())
        return self.mask.as_strided(view.shape, view.stride(), offset)


class WeightMemory:
    """Finds the weight that an operand is: the same memory, a view of it, or a copy.

    Invariant: a storage address stands for one tensor. Weights keep their memory as long as the
    model lives, and copies are kept alive here, so that no new tensor reuses an address.

    Where weights are sharded over ranks (FSDP2), construction is a collective call.

    Args:
        model: the model.
        masks: bool masks by the parameter's name in the model. Weights without a mask are dense.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._weights: dict[int, list[_Owner]] = {}
        self._sharded = _sharded_places(model)
        self._masks: dict[str, Tensor] = {}
        self._copies: dict[int, _Owner] = {}
        for full_name, parameter in model.named_parameters():
            name = canonical_name(full_name)
            if name in masks:
                self._masks[name] = _laid_out(full_tensor(masks[name]), parameter)
            if parameter.dim() >= 2 and not is_sharded(parameter):
                address = parameter.untyped_storage().data_ptr()
                owner = _Owner(name, parameter, self._masks.get(name))
                self._weights.setdefault(address, []).append(owner)

    def find(self, operand: Tensor) -> tuple[str, float] | None:
        """Return the name of the weight that ``operand`` shows, and its number of live entries.

        Live entries of ``operand`` are counted. An entry that an expanded view repeats counts each
        time.
        """
        owner = self._owner(operand)
        if owner is None:
            return None
        mask = owner.mask_of(operand)
        return owner.name, float(operand.numel() if mask is None else mask.sum())

    def has_mask(self, operand: Tensor) -> bool:
        """Whether ``operand`` is a view of a weight that has a mask."""
        owner = self._owner(operand)
        return owner is not None and owner.mask is not None

    def note_copy(self, source: Tensor, out: Tensor) -> None:
        """Record that ``out`` is a copy of ``source``, perhaps in another dtype or layout."""
        owner = self._owner(source)
        if owner is None or source.shape != out.shape:
            return
        mask = owner.mask_of(source)
        if mask is not None:
            mask = _laid_out(mask, out)
        self._note(owner.name, out, mask)

    def note_product(self, factors: Sequence[object], out: Tensor) -> None:
        """Record that ``out`` is an element-wise product of ``factors``, which broadcast.

        If one of them is a weight with a mask, its dropped entries are zeros of the product too.
        """
        for factor in factors:
            if isinstance(factor, Tensor) and self.has_mask(factor):
                self.note_selection(factor, out, lambda mask: mask.expand(out.shape))

    def note_selection(
        self, source: Tensor, out: Tensor, select: Callable[[Tensor], Tensor]
    ) -> None:
        """Record that ``out`` has entries of ``source``, and its mask the same entries of a mask.

        Weights without a mask are left out: their entries are often used as activations.
        """
        owner = self._owner(source)
        mask = None if owner is None else owner.mask_of(source)
        if owner is not None and mask is not None:
            self._note(owner.name, out, _laid_out(select(mask), out))

    def _note(self, name: str, out: Tensor, mask: Tensor | None) -> None:
        self._copies[out.untyped_storage().data_ptr()] = _Owner(name, out, mask)

    def _owner(self, operand: Tensor) -> _Owner | None:
        """Return the weight, or the copy of a weight, that ``operand`` is a view of.

        If several weights share one storage (a flat parameter), the operand's offset decides
        between them.
        """
        if is_sharded(operand):
            return next((owner for owner in self._sharded_now() if owner.tensor is operand), None)
        if operand.layout != torch.strided:
            return None
        address = operand.untyped_storage().data_ptr()
        if address in self._copies:
            return self._copies[address]
        for owner in chain(self._weights.get(address, ()), self._gathered_at(address)):
            offset = int(operand.storage_offset() - owner.tensor.storage_offset())
            if 0 <= offset < _extent(owner.tensor):
                return owner
        return None

    def _sharded_now(self) -> Iterator[_Owner]:
        """Yield the present tensors of sharded parameters: shards, or gathered full weights."""
        for name, module, attribute in self._sharded:
            parameter = module._parameters.get(attribute)
            if parameter is not None:
                yield _Owner(name, parameter, self._masks.get(name))

    def _gathered_at(self, address: int) -> Iterator[_Owner]:
        for owner in self._sharded_now():
            tensor = owner.tensor
            if not is_sharded(tensor) and tensor.untyped_storage().data_ptr() == address:
                yield owner


def _sharded_places(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Return name, module and attribute of each sharded matrix.

    FSDP2 replaces the parameter at this place when it gathers and when it shards.
    """
    return [
        (canonical_name(f"{path}.{attribute}" if path else attribute), module, attribute)
        for path, module in model.named_modules()
        for attribute, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() >= 2 and is_sharded(parameter)
    ]


def _laid_out(mask: Tensor, weight: Tensor) -> Tensor:
    """Return ``mask`` in the memory layout of ``weight``, so that views of both correspond."""
    if mask.stride() == weight.stride():
        return mask
    same = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.bool, device=mask.device)
    return same.copy_(mask)


def _extent(weight: Tensor) -> int:
    """Return the distance in memory from the first entry to the last, both included."""
    last = sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    return last + 1 if math.prod(weight.shape) else 0
