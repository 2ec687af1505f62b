"""Pools: many layers and small dense parameters that the inner optimizer steps as one parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.gather import (
    CPU_SMALL,
    Member,
    for_each,
    gradient_of,
    parts_of,
    shares,
)
from sparseopt.utils.tensors import version_of

__all__ = ["Pool", "is_small_and_dense", "make_pools", "with_own_memory"]

#: Live weights of a pool on a CPU: few enough that the dense weights stay in the cache until live
#: weights are written back, and enough that the cost of a call does not matter.
CPU_POOL: Final = 1 << 17
#: The same where each thread gathers layers of its own, so that a pool needs several large layers.
CPU_POOL_OF_THREADS: Final = 1 << 20
#: The same on an accelerator, where it bounds the temporary memory of a step.
ACCELERATOR_POOL: Final = 1 << 24


#: With these types, an optimizer's result for an entry doesn't depend on its index in a tensor.
SAME_EVERYWHERE: Final = frozenset({torch.float32, torch.float64})


class Pool:
    """Members of one param group whose live weights the inner optimizer steps as one 1-D parameter.

    Members are layers that are not full, and small dense parameters.

    A pool is correct for element-wise optimizers and for members that have had the same steps. Then
    state of which the optimizer keeps one value for each parameter, such as the number of steps, is
    the same for all members. The state stays in the entries of the members' own parameters, as
    views of the pool's state.

    Args:
        inner: the optimizer.
        group: the param group.
        members: the members, all of one dtype and on one device, with state that can be pooled.

    Attributes:
        live: number of live weights.
        flat_parameter: the parameter that the inner optimizer steps between :meth:`stand_in` and
            :meth:`stand_down`; empty otherwise.
    """

    def __init__(self, inner: Optimizer, group: dict[str, Any], members: Sequence[Member]) -> None:
        self.inner = inner
        self.group = group
        self._parts = parts_of(members)
        self.members = [member for part in self._parts for member in part.members]
        self.sizes = [member.live for member in self.members]
        self._shares = shares(self._parts, members[0].weight.device)
        self.live = sum(self.sizes)
        self._part_sizes = [part.live for part in self._parts]
        self._nothing = members[0].weight.detach().new_empty(0)
        self.flat_parameter = Parameter(self._nothing)
        self._gradient_dtype = gradient_of(members[0]).dtype
        if self._gradient_dtype != self._nothing.dtype:
            self.flat_parameter.grad_dtype = self._gradient_dtype
        self._state: dict[str, Any] = {}
        #: The last tensors of :attr:`_state`, to detect new ones; for 0-dimensional tensors, the
        #: values of all members but the first.
        self._memory: dict[str, Tensor] = {}
        #: The version of the 0-dimensional tensors after the last step, by name: it counts writes,
        #: and reading it doesn't wait for the device.
        self._versions: dict[str, int] = {}
        self._views: dict[str, list[Any]] = {}
        self._addresses: dict[str, list[int | None]] = {}
        self._join([inner.state.get(member.weight, {}) for member in self.members])

    def fits(self) -> bool:
        """Whether the members' state is still the views that this pool made, of the same sizes.

        It does not fit either if other code has written to state with one value a member, because
        then the values may differ.
        """
        dtype, state, count = self.flat_parameter.dtype, self.inner.state, len(self._views)
        entries = []
        for member, size in zip(self.members, self.sizes, strict=True):
            weight = member.weight
            # A member may have been cast to another precision in the meantime.
            if member.live != size or weight.dtype != dtype:
                return False
            gradient = weight.grad
            if gradient is None or not _is_plain(gradient):
                return False
            if gradient.dtype != self._gradient_dtype:
                return False
            entry = state.get(weight, {})
            if len(entry) != count:
                return False
            entries.append(entry)
        for name, version in self._versions.items():
            if version_of(self._memory[name]) != version:
                return False
        for name, views in self._views.items():
            for entry, view, address in zip(entries, views, self._addresses[name], strict=True):
                # After an assignment to its .data, it is the same object at another address.
                if entry.get(name) is not view or _address(view) != address:
                    return False
        return all(part.fits() for part in self._parts)

    def stand_in(self) -> None:
        """Gather all members, which must have gradients, into :attr:`flat_parameter`."""
        weights = self.members[0].weight.detach().new_empty(self.live)
        gradients = gradient_of(self.members[0]).new_empty(self.live)
        live, live_gradient = self._by_part(weights), self._by_part(gradients)

        def gather(index: int) -> None:
            self._parts[index].gather(live[index], live_gradient[index])

        for_each(gather, self._shares)
        self.flat_parameter.data = weights
        self.flat_parameter.grad = gradients
        self.inner.state[self.flat_parameter] = self._state

    def write_back(self) -> None:
        """Write the values and the state of :attr:`flat_parameter` back to the members."""
        live = self._by_part(self.flat_parameter.detach())

        def put_back(index: int) -> None:
            self._parts[index].put_back(live[index])

        self._state = self.inner.state[self.flat_parameter]
        self._share()
        for_each(put_back, self._shares)

    def stand_down(self) -> None:
        """Free the gathered tensors."""
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
                self._state[name] = torch.cat([entry[name].reshape(-1) for entry in entries])
        self._share()

    def _share(self) -> None:
        """Make the members' state entries views of the pool's state, after a step changed it.

        A number is the same for all members. A 0-dimensional tensor becomes one tensor for each
        member, all with the first one's value. A 1-D tensor is split into views, one a member.
        Invariant: afterwards, each member's entry has every name of the pool's state.
        """
        for name, value in self._state.items():
            held = self._memory.get(name)
            if not isinstance(value, Tensor):
                views = [value] * len(self.members)
                if self._views.get(name) == views:
                    continue
            elif value.dim() == 0:
                if held is not None and value is self._views[name][0]:
                    held.copy_(value)
                    self._versions[name] = version_of(held)
                    continue
                # One tensor each: after detach(), each member's step would change a shared one.
                each = value.repeat(len(self.members))
                # All views of a tensor have one version.
                self._memory[name] = each[1:]
                self._versions[name] = version_of(each)
                views = list(each.unbind())
                self._state[name] = views[0]
            else:
                if held is value:
                    continue
                self._memory[name] = value
                views = [
                    part if isinstance(member, SparseLayer) else part.view(member.weight.shape)
                    for member, part in zip(
                        self.members, torch.split(value, self.sizes), strict=True
                    )
                ]
            self._views[name] = views
            self._addresses[name] = [_address(view) for view in views]
            for member, view in zip(self.members, views, strict=True):
                self.inner.state[member.weight][name] = view


def is_small_and_dense(weight: Any, group: Mapping[str, Any]) -> bool:
    """Whether a parameter without a mask is small enough to be stepped with others.

    The answer is no on an accelerator, where optimizers step all parameters with a few launches,
    and where the last bit of an entry would differ from a step of the parameter alone.
    """
    return (
        type(weight) is Parameter
        and weight.is_cpu
        and weight.dim() > 0
        and 0 < weight.numel() <= CPU_SMALL
        and weight.dtype in SAME_EVERYWHERE
        and not group.get("fused")
        and weight.is_contiguous()
        and (weight.grad is None or _is_plain(weight.grad))
    )


def make_pools(inner: Optimizer, group: dict[str, Any], members: Iterable[Member]) -> list[Pool]:
    """Return pools of the ``members`` of a group that can be stepped together.

    Two kinds of members are in no pool: a member whose state is neither one value a live weight nor
    one value a parameter, and a dense parameter that would be alone in its pool.
    """
    by_kind: dict[Any, list[Member]] = {}
    # Small members come last, so that one bundle contains them, and not one bundle in each pool.
    for member in sorted(members, key=lambda member: member.numel <= CPU_SMALL):
        history = _history(inner.state.get(member.weight, {}), member)
        if history is not None:
            key = member.weight.dtype, gradient_of(member).dtype, member.weight.device, history
            by_kind.setdefault(key, []).append(member)
    return [
        Pool(inner, group, together)
        for same in by_kind.values()
        for together in _within_limit(same)
        if len(together) > 1 or isinstance(together[0], SparseLayer)
    ]


def with_own_memory(value: Any) -> Any:
    """Return a copy of a tensor that is a part of a larger tensor; anything else unchanged."""
    if type(value) is not Tensor or value.untyped_storage().nbytes() <= value.nbytes:
        return value
    return value.clone()


def _address(value: Any) -> int | None:
    return value.data_ptr() if isinstance(value, Tensor) else None


def _is_plain(gradient: Tensor) -> bool:
    return type(gradient) is Tensor and gradient.layout == torch.strided


def _history(entry: Mapping[str, Any], member: Member) -> tuple[Any, ...] | None:
    """Return the facts that must be equal for members to share state; ``None`` if they can't.

    These are the names, types and devices of state, and the values of state that the optimizer
    keeps once a parameter.
    """
    is_layer = isinstance(member, SparseLayer)
    shape = torch.Size([member.live]) if is_layer else member.weight.shape
    facts: list[Any] = []
    for name, value in entry.items():
        if not isinstance(value, Tensor):
            facts.append((name, value))
        elif value.dim() == 0:
            facts.append((name, value.dtype, value.device, value.item()))
        elif value.shape == shape:
            facts.append((name, value.dtype, value.device))
        else:
            return None
    try:
        hash(tuple(facts))
    except TypeError:
        return None
    return tuple(facts)


def _within_limit(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Yield runs of members with at most ``limit`` live weights together, in order.

    The limit bounds the memory of the gathered copies; one member alone may exceed it.
    """
    if members[0].weight.device.type != "cpu":
        limit = ACCELERATOR_POOL
    elif torch.get_num_threads() == 1 or _work_in_threads(members):
        limit = CPU_POOL
    else:
        limit = CPU_POOL_OF_THREADS
    together: list[Member] = []
    live = 0
    for member in members:
        if together and live + member.live > limit:
            yield together
            together, live = [], 0
        together.append(member)
        live += member.live
    yield together


def _work_in_threads(members: Sequence[Member]) -> bool:
    return any(
        isinstance(member, SparseLayer) and member._copies_in_threads() for member in members
    )
