"""Many layers stepped by the inner optimizer as one parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.gather import for_each, gradient_of, parts_of, shares

__all__ = ["Pool", "make_pools", "only_parameters"]

#: Live weights of a pool on a CPU: few enough for an optimizer's temporary tensors to stay in the
#: cache, enough to make what a call costs disappear.
CPU_POOL: Final = 1 << 20
#: On an accelerator a call costs a launch; this bounds what a step needs for a moment.
ACCELERATOR_POOL: Final = 1 << 24


class Pool:
    """Layers of one param group whose live weights the inner optimizer steps as one 1-D parameter.

    Right for optimizers that treat every entry of a parameter alike and alone, and for layers that
    have had the same steps: then what the optimizer holds once a parameter, such as the number of
    steps, is the same for all. The state stays in the entries of the layers' own parameters, as
    views of what the optimizer works on.

    Args:
        inner: the optimizer.
        group: the param group.
        layers: none of them full, all of one dtype and on one device, with state to be pooled.

    Attributes:
        live: number of live weights.
        flat_parameter: what the inner optimizer steps between :meth:`stand_in` and
            :meth:`stand_down`; without entries otherwise.
    """

    def __init__(
        self, inner: Optimizer, group: dict[str, Any], layers: Sequence[SparseLayer]
    ) -> None:
        self.inner = inner
        self.group = group
        self._parts = parts_of(layers)
        self.layers = [layer for part in self._parts for layer in part.layers]
        self.sizes = [layer.live for layer in self.layers]
        self._shares = shares(self._parts, layers[0].weight.device)
        self.live = sum(self.sizes)
        self._part_sizes = [part.live for part in self._parts]
        self._nothing = layers[0].weight.detach().new_empty(0)
        self.flat_parameter = Parameter(self._nothing)
        self._state: dict[str, Any] = {}
        self._memory: dict[str, Tensor] = {}
        self._views: dict[str, list[Any]] = {}
        self._addresses: dict[str, list[int | None]] = {}
        self._join([inner.state.get(layer.weight, {}) for layer in self.layers])

    def fits(self) -> bool:
        """Whether the layers' state is still what this pool made of it, and of the same size."""
        if [layer.live for layer in self.layers] != self.sizes:
            return False
        # One of them may have been brought into another precision since.
        if any(layer.weight.dtype != self.flat_parameter.dtype for layer in self.layers):
            return False
        entries = [self.inner.state.get(layer.weight, {}) for layer in self.layers]
        if any(len(entry) != len(self._views) for entry in entries):
            return False
        for name, views in self._views.items():
            pairs = zip(entries, views, strict=True)
            if not all(entry.get(name) is view for entry, view in pairs):
                return False
            # They are the same objects still when somebody assigned to their .data.
            if [_address(view) for view in views] != self._addresses[name]:
                return False
        return all(part.fits() for part in self._parts)

    def stand_in(self) -> None:
        """Gather all layers, every one of which has a gradient, into :attr:`flat_parameter`."""
        weights = self.layers[0].weight.detach().new_empty(self.live)
        gradients = gradient_of(self.layers[0]).new_empty(self.live)
        live, live_gradient = self._by_part(weights), self._by_part(gradients)

        def gather(index: int) -> None:
            self._parts[index].gather(live[index], live_gradient[index])

        for_each(gather, self._shares)
        self.flat_parameter.data = weights
        self.flat_parameter.grad = gradients
        self.inner.state[self.flat_parameter] = self._state

    def write_back(self) -> None:
        """Give the layers what the inner optimizer made of :attr:`flat_parameter`."""
        live = self._by_part(self.flat_parameter.detach())

        def put_back(index: int) -> None:
            self._parts[index].put_back(live[index])

        self._state = self.inner.state[self.flat_parameter]
        self._share()
        for_each(put_back, self._shares)

    def stand_down(self) -> None:
        """Free what was gathered."""
        self._state = self.inner.state.pop(self.flat_parameter, self._state)
        self.flat_parameter.grad = None
        self.flat_parameter.data = self._nothing

    def _by_part(self, values: Tensor) -> Sequence[Tensor]:
        return [values] if len(self._parts) == 1 else torch.split(values, self._part_sizes)

    def _join(self, entries: Sequence[dict[str, Any]]) -> None:
        for name, value in entries[0].items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                self._state[name] = value
            else:
                self._state[name] = torch.cat([entry[name] for entry in entries])
        self._share()

    def _share(self) -> None:
        """Bring the layers' entries up to what the optimizer made of the pool's state."""
        for name, value in self._state.items():
            held = self._memory.get(name)
            if not isinstance(value, Tensor):
                views = [value] * len(self.layers)
                if self._views.get(name) == views:
                    continue
            elif value.dim() == 0:
                if held is not None and value is self._views[name][0]:
                    held[1:] = value
                    continue
                # One element each: a common one would be stepped once a parameter after release().
                self._memory[name] = value.repeat(len(self.layers))
                views = list(self._memory[name].unbind())
                self._state[name] = views[0]
            else:
                if held is value:
                    continue
                self._memory[name] = value
                views = list(torch.split(value, self.sizes))
            self._views[name] = views
            self._addresses[name] = [_address(view) for view in views]
            for layer, view in zip(self.layers, views, strict=True):
                self.inner.state[layer.weight][name] = view


def make_pools(
    inner: Optimizer, group: dict[str, Any], layers: Iterable[SparseLayer]
) -> list[Pool]:
    """Return pools of those of a group's ``layers`` that can be stepped together.

    A layer whose state is neither one value a live weight nor one a parameter is in none of them.
    """
    alike: dict[Any, list[SparseLayer]] = {}
    for layer in layers:
        history = _history(inner.state.get(layer.weight, {}), layer)
        if history is not None:
            key = layer.weight.dtype, gradient_of(layer).dtype, layer.weight.device, history
            alike.setdefault(key, []).append(layer)
    return [
        Pool(inner, group, together)
        for members in alike.values()
        for together in _within_limit(members)
    ]


@contextmanager
def only_parameters(inner: Optimizer, parameters: Mapping[int, list[Any]]) -> Iterator[None]:
    """Leave only some parameters in the groups of ``inner``, given by the groups' ids."""
    everything = [(group, group["params"]) for group in inner.param_groups]
    for group, _ in everything:
        group["params"] = parameters.get(id(group), [])
    try:
        yield
    finally:
        for group, whole in everything:
            group["params"] = whole


def _address(value: Any) -> int | None:
    return value.data_ptr() if isinstance(value, Tensor) else None


def _history(entry: Mapping[str, Any], layer: SparseLayer) -> tuple[Any, ...] | None:
    """Return what has to be the same for layers to share state; None if it can't be shared."""
    facts: list[Any] = []
    for name, value in entry.items():
        if not isinstance(value, Tensor):
            facts.append((name, value))
        elif value.dim() == 0:
            facts.append((name, value.dtype, value.device, value.item()))
        elif value.shape == (layer.live,):
            facts.append((name, value.dtype, value.device))
        else:
            return None
    try:
        hash(tuple(facts))
    except TypeError:
        return None
    return tuple(facts)


def _within_limit(layers: Sequence[SparseLayer]) -> Iterator[list[SparseLayer]]:
    limit = CPU_POOL if layers[0].weight.device.type == "cpu" else ACCELERATOR_POOL
    together: list[SparseLayer] = []
    live = 0
    for layer in layers:
        if together and live + layer.live > limit:
            yield together
            together, live = [], 0
        together.append(layer)
        live += layer.live
    yield together
