"""Finds the weight that an operand is: by its memory in an operator, by its name in a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

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


class WeightMemory:
    """Finds the weight that an operand is: the same memory, a view of it, or a cast.

    Invariant: a storage address stands for one tensor. Weights keep their memory as long as the
    model lives, and casts are kept alive here, so that no new tensor reuses an address.

    Where weights are sharded over ranks (FSDP2), construction is a collective call.

    Args:
        model: the model.
        masks: bool masks by the parameter's name in the model. Weights without a mask are dense.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._weights: dict[int, list[tuple[str, Tensor]]] = {}
        self._sharded = _sharded_places(model)
        self._masks: dict[str, Tensor] = {}
        # By address, each cast of a weight and its source.
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}
        for full_name, parameter in model.named_parameters():
            name = canonical_name(full_name)
            if name in masks:
                self._masks[name] = _laid_out(full_tensor(masks[name]), parameter)
            if parameter.dim() >= 2 and not is_sharded(parameter):
                address = parameter.untyped_storage().data_ptr()
                self._weights.setdefault(address, []).append((name, parameter))

    def find(self, operand: Tensor) -> tuple[str, float] | None:
        """Return the name of the weight that ``operand`` shows, and its number of live entries.

        Live entries of ``operand`` are counted. An entry that an expanded view repeats counts each
        time.
        """
        owner = self._owner(operand)
        if owner is None:
            return None
        name, _, offset = owner
        mask = self._masks.get(name)
        if mask is None:
            return name, float(operand.numel())
        part = mask.as_strided(operand.shape, operand.stride(), offset)
        return name, float(part.sum())

    def has_mask(self, operand: Tensor) -> bool:
        """Whether ``operand`` is a view of a weight that has a mask."""
        owner = self._owner(operand)
        return owner is not None and owner[0] in self._masks

    def note_copy(self, source: Tensor, out: Tensor) -> None:
        """Record that ``out`` is a copy of ``source``, perhaps in another dtype."""
        if (
            self._owner(source) is not None
            and source.shape == out.shape
            and source.stride() == out.stride()
        ):
            self._casts[out.untyped_storage().data_ptr()] = (out, source)

    def _owner(self, operand: Tensor) -> tuple[str, Tensor, int] | None:
        """Return name, tensor and offset in memory of the weight that ``operand`` is a view of.

        A cast is traced back to its source. If several weights share one storage (a flat
        parameter), the operand's offset decides between them.
        """
        if is_sharded(operand):
            return next(((n, w, 0) for n, w in self._sharded_now() if w is operand), None)
        address = operand.untyped_storage().data_ptr()
        if address in self._casts:
            cast, source = self._casts[address]
            owner = self._owner(source)
            if owner is None:
                return None
            name, weight, offset = owner
            return name, weight, offset + int(operand.storage_offset() - cast.storage_offset())
        for name, weight in (*self._weights.get(address, ()), *self._gathered_at(address)):
            offset = int(operand.storage_offset() - weight.storage_offset())
            if 0 <= offset < _extent(weight):
                return name, weight, offset
        return None

    def _sharded_now(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the present tensors of sharded parameters: shards, or gathered full weights."""
        for name, module, attribute in self._sharded:
            parameter = module._parameters.get(attribute)
            if parameter is not None:
                yield name, parameter

    def _gathered_at(self, address: int) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._sharded_now():
            if not is_sharded(parameter) and parameter.untyped_storage().data_ptr() == address:
                yield name, parameter


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
    if mask.stride() == weight.stride() and mask.storage_offset() == 0:
        return mask
    same = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.bool, device=mask.device)
    return same.copy_(mask)


def _extent(weight: Tensor) -> int:
    """Return the distance in memory from the first entry to the last, both included."""
    last = sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
    return last + 1 if math.prod(weight.shape) else 0
