"""The state that a method keeps from step to step, by layer and for the run.

A method is frozen and declares only the *initial* state. The state itself belongs to the optimizer:
it is in checkpoints, copies and pickles, is on the weight's device, is sharded as the weight is,
and starts equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Final, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor, is_sharded, local, shard_like
from sparseopt.distributed.ranks import agree_on_values
from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.indices import mark
from sparseopt.masks.layer import SparseLayer

__all__ = ["LayerState", "MethodState", "RunState"]

#: Kinds of values, beside ``None`` and tensors, and the types that torch.load reads from a
#: checkpoint without running code. A bool is also an Integral, so it comes first.
PLAIN: Final[tuple[tuple[type, type], ...]] = (
    (bool, bool),
    (np.bool_, bool),
    (Integral, int),
    (Real, float),
    (str, str),
)


class KeepsState(Protocol):
    """The attributes of a method that declare its state; see :class:`sparseopt.Method`."""

    name: ClassVar[str]
    follows_mask: ClassVar[tuple[str, ...]]

    def initial_layer_state(self, layer: SparseLayer) -> Mapping[str, Tensor]:
        """Return the initial state of a layer."""

    def initial_run_state(self) -> Mapping[str, Any]:
        """Return the initial state of the run."""


class LayerState(Mapping[str, Tensor]):
    """The tensors that a method keeps for one layer, by name.

    Change them in place, or assign a tensor of the same shape, whose values are copied into the
    tensor that is kept.

    Args:
        owner: the method and the layer, for messages.
        tensors: the tensors.

    Raises:
        KeyError: if a name is read or assigned that the method has not declared.
        ValueError: if a tensor of another shape is assigned.
    """

    def __init__(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        self._owner = owner
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise _undeclared("initial_layer_state(layer)", name, self._owner, self._tensors)
        return self._tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        held, given = self[name], cast(object, value)
        if not isinstance(given, Tensor) or given.shape != held.shape:
            got = tuple(given.shape) if isinstance(given, Tensor) else repr(given)
            raise ValueError(
                f"layer_state[{name!r}] of {self._owner} is a tensor of shape "
                f"{tuple(held.shape)}, but was assigned {got}."
            )
        with torch.no_grad():
            value = value.detach()
            value = shard_like(value, held) if is_sharded(held) else full_tensor(value)
            local(held).copy_(local(value))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"LayerState({self._tensors!r})"

    def follow(self, weight: Tensor) -> None:
        """Bring the tensors to the device of ``weight``, and shard them as it is sharded."""
        for name, tensor in self._tensors.items():
            self._tensors[name] = _placed(tensor, weight)


class RunState(Mapping[str, Any]):
    """The plain values and tensors that a method keeps for the whole run, by name.

    Args:
        owner: the method, for messages.
        values: the initial values.

    Raises:
        KeyError: if a name is read or assigned that the method has not declared.
        TypeError: if a value is not a number, a string, ``None`` or a tensor, so that a checkpoint
            can't hold it.
    """

    def __init__(self, owner: str, values: Mapping[str, Any]) -> None:
        self._owner = owner
        self._values = {name: self._plain(name, value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise _undeclared("initial_run_state()", name, self._owner, self._values)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self[name]
        plain = self._plain(name, value)
        self._values[name] = plain.detach() if isinstance(plain, Tensor) else plain

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"RunState({self._values!r})"

    def _plain(self, name: str, value: Any) -> Any:
        """Return a tensor or ``None`` as it is, and another value in the type of a checkpoint."""
        if value is None or isinstance(value, Tensor):
            return value
        for kind, plain in PLAIN:
            if isinstance(value, kind):
                return plain(value)
        raise TypeError(
            f"run_state[{name!r}] of {self._owner} can't be {type(value).__name__} "
            f"({value!r}): a checkpoint holds numbers, strings, None and tensors."
        )


class MethodState:
    """All state that a method keeps in one optimizer.

    Args:
        method: the method, which declares the state.

    Attributes:
        run: the state of the run.
    """

    def __init__(self, method: KeepsState) -> None:
        self._method = method
        self._layers: dict[str, LayerState] = {}
        self.run = self._agreed_run_state()

    def begin(self, layers: Sequence[SparseLayer]) -> None:
        """Make the state of new layers, with the values of rank 0. Collective if there is state."""
        # A method may keep nothing for some layers, such as dense ones.
        if not any(self.initial(layer) for layer in layers):
            return
        begun = {layer: self.initial(layer) for layer in layers if not layer.is_dense}
        plain = [full_tensor(tensor) for state in begun.values() for tensor in state.values()]
        agreed = iter(agree_on_values(plain))
        for layer, state in begun.items():
            self._layers[layer.name] = LayerState(
                self._owner(layer),
                {name: _placed(next(agreed), layer.weight) for name in state},
            )

    def of(self, layer: SparseLayer) -> LayerState:
        """Return the state of a layer, on the device of its weight.

        Raises:
            ValueError: if the layer's ``is_dense`` is true: such a layer has no state.
        """
        held = self._layers.get(layer.name)
        if held is None:
            if layer.is_dense:
                raise ValueError(
                    f"{self._owner(layer)} has no state: the layer stays dense, and no update "
                    "moves it. Leave out layers whose is_dense is true."
                )
            held = LayerState(self._owner(layer), self.initial(layer))
            self._layers[layer.name] = held
        held.follow(layer.weight)
        return held

    @torch.no_grad()
    def initial(self, layer: SparseLayer) -> dict[str, Tensor]:
        """Return the initial state that the method declares for a layer, checked and copied.

        Raises:
            TypeError: if it is not a mapping from names to tensors.
            ValueError: if a name in ``follows_mask`` is missing, or not of the weight's shape.
        """
        method, owner = self._method, self._owner(layer)
        declared: object = method.initial_layer_state(layer)
        if not isinstance(declared, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor)
            for name, tensor in declared.items()
        ):
            raise TypeError(
                f"initial_layer_state() of {owner} returned {type(declared).__name__}: it must be "
                "a dictionary from names to tensors."
            )
        for name in method.follows_mask:
            shape = tuple(declared[name].shape) if name in declared else None
            if shape != tuple(layer.weight.shape):
                raise ValueError(
                    f"follows_mask of {owner} names {name!r}, which must be a tensor of the "
                    f"weight's shape {tuple(layer.weight.shape)} in initial_layer_state(), but "
                    + ("is not in it." if shape is None else f"has shape {shape}.")
                )
        return {
            name: _placed(tensor.detach(), layer.weight).clone()
            for name, tensor in declared.items()
        }

    @torch.no_grad()
    def follow_mask(self, layer: SparseLayer, transition: Transition) -> None:
        """Give weights that a transition did not keep their initial state; call it afterwards."""
        if not self._method.follows_mask:
            return
        begun, state = self.initial(layer), self.of(layer)
        kept = mark(transition.positions[transition.kept], layer.numel).view(layer.weight.shape)
        kept = local(shard_like(kept, layer.weight))
        for name in self._method.follows_mask:
            held = local(state[name])
            held.copy_(torch.where(kept, held, local(begun[name])))

    def saved(self, layer: SparseLayer) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint saves for a layer."""
        return dict(self.of(layer))

    def restore(self, layer: SparseLayer, saved: Mapping[str, Tensor]) -> None:
        """Load the tensors that :meth:`saved` returned; a dense layer has none."""
        if layer.is_dense:
            self.forget(layer)
            return
        state = self.of(layer)
        for name, tensor in saved.items():
            state[name] = tensor

    def forget(self, layer: SparseLayer) -> None:
        """Free the state of a layer."""
        self._layers.pop(layer.name, None)

    def everything(self, layers: Iterable[SparseLayer]) -> list[Any]:
        """Return the complete state, to compare it. Collective where weights are sharded."""
        sparse = [layer for layer in layers if not layer.is_dense]
        tensors = [full_tensor(tensor) for layer in sparse for tensor in self.of(layer).values()]
        return [*tensors, *self.run.values()]

    def saved_run(self) -> tuple[tuple[str, Any], ...]:
        """Return what a checkpoint saves for the run: pairs of name and value."""
        return tuple(
            (name, value.clone() if isinstance(value, Tensor) else value)
            for name, value in self.run.items()
        )

    def restore_run(self, saved: Iterable[tuple[str, Any]]) -> None:
        """Load what :meth:`saved_run` returned."""
        for name, value in saved:
            self.run[name] = value

    def _agreed_run_state(self) -> RunState:
        """Return the run state that the method declares, with the values of rank 0 on each rank."""
        owner = f"method {self._method.name!r}"
        declared: object = self._method.initial_run_state()
        if not isinstance(declared, Mapping):
            raise TypeError(
                f"initial_run_state() of {owner} returned {type(declared).__name__}: it must be a "
                "dictionary."
            )
        checked = RunState(owner, declared)
        if not checked:
            return checked
        agreed = agree_on_values(list(checked.values()))
        return RunState(owner, dict(zip(checked, agreed, strict=True)))

    def _owner(self, layer: SparseLayer) -> str:
        return f"method {self._method.name!r} for layer {layer.name!r}"


def _placed(tensor: Tensor, weight: Tensor) -> Tensor:
    tensor = tensor.to(weight.device)
    return shard_like(tensor, weight) if tensor.shape == weight.shape else full_tensor(tensor)


def _undeclared(function: str, name: str, owner: str, declared: Mapping[str, object]) -> KeyError:
    there = ", ".join(map(repr, declared)) or "nothing"
    return KeyError(f"{owner} keeps no {name!r}: {function} declares {there}.")
