"""Concatenation of maps along channels, in the kernels' layout.

``torch.cat`` returns a contiguous map, whatever the strides of its inputs. In the kernels' layout a
channel is one piece of memory. So a concatenation along channels copies one map behind the other,
and the gradient of each input is a slice of memory, without a copy.

A module whose methods call ``torch.cat`` gets a subclass of its class while a speed-up lasts. In
its forward pass, a mode replaces these calls where an input is in the kernels' layout. The mode
costs a microsecond for every use of a tensor, so exchanged modules leave it while they compute.

These modules keep their class: graph modules and parametrized modules, because torch changes their
classes, and modules whose class refuses or registers subclasses.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, new_class
from typing import Any, Final, Generic

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from sparseopt.speedup.kernels.ops import plain_call
from sparseopt.speedup.live_training.layout import (
    from_channels,
    in_kernel_layout,
    to_kernel_layout,
)

__all__ = ["ConcatenatingModules", "concatenated", "outside_of_mode"]

Forward = Callable[..., Any]

_FUNCTIONS: Final = frozenset({torch.cat, torch.concat, torch.concatenate})
_NAMES: Final = frozenset({"cat", "concat", "concatenate"})
_CHANNELS: Final = (1, -3)
#: The function with which copy and pickle make an instance by default.
_NEW: Final = object().__reduce_ex__(2)[0]
#: Classes that do not register their subclasses.
_PLAIN_BASES: Final = frozenset({*nn.Module.__mro__, Generic})
_PLAIN_METACLASSES: Final = frozenset({type, ABCMeta})
#: At most this many wrappers of a method are followed, because a wrapper may wrap itself.
_MOST_WRAPPERS: Final = 100


def concatenated(tensors: Any, dim: Any = 0, *, axis: Any = None, out: Any = None) -> Tensor | None:
    """Return ``torch.cat(tensors, dim)`` as a map in the kernels' layout.

    Inputs in another layout are converted. ``axis`` is another name for ``dim``, as in torch.

    Returns:
        The map; ``None`` if no input is in the kernels' layout, or if this is not a concatenation
        of maps along channels. Then torch has to compute it, or to raise its error.
    """
    along_channels = (dim if axis is None else axis) in _CHANNELS
    if out is not None or not along_channels or not isinstance(tensors, (list, tuple)):
        return None
    if not all(isinstance(x, Tensor) and x.dim() == 4 for x in tensors) or not plain_call(tensors):
        return None
    sizes = {(x.shape[0], *x.shape[2:]) for x in tensors}
    if len(sizes) != 1 or not any(map(in_kernel_layout, tensors)):
        return None
    joined = torch.cat([to_kernel_layout(x).permute(1, 2, 3, 0) for x in tensors])
    batch, height, width = sizes.pop()
    return from_channels(joined, (batch, joined.shape[0], height, width))


def outside_of_mode(forward: Forward) -> Forward:
    """Return a method like ``forward`` that leaves the mode of a concatenating module first."""

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _mode() is None:
            return forward(self, *args, **kwargs)
        mode = torch._C._pop_torch_function_stack()
        try:
            return forward(self, *args, **kwargs)
        finally:
            torch._C._push_on_torch_function_stack(mode)

    return call


class ConcatenatingModules:
    """The modules of a model whose methods call ``torch.cat``.

    Args:
        model: the model, with no module exchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        kinds = {kind for kind in map(type, model.modules()) if _calls_cat(kind)}
        self._modules = [module for module in model.modules() if type(module) in kinds]
        self._new: dict[type[nn.Module], type[nn.Module]] = {}
        self._entered: tuple[_Concatenates, RemovableHandle] | None = None

    def exchange(self) -> None:
        """Give every module a class that keeps maps in the kernels' layout in ``torch.cat``."""
        for module in self._modules:
            # To remove a parametrization, torch sets the class to the base of the current class.
            if not is_parametrized(module):
                module.__class__ = self._new_class(type(module))

    def enter(self, module: nn.Module) -> None:
        """Run the rest of a module's forward pass in the mode, if the module was exchanged.

        torch looks up ``forward`` before it runs the hooks. So if a hook exchanges the module, this
        pass still runs the old ``forward``, outside of the mode.
        """
        if self._new.get(type(module).__bases__[0]) is not type(module):
            return
        self._leave()
        mode = _Concatenates(module.training)
        torch._C._push_on_torch_function_stack(mode)

        # A lambda, because a copy of the model in this pass would copy the object of a method.
        handle = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
        self._entered = mode, handle

    def put_back(self) -> None:
        """Restore the original classes."""
        self._leave()
        plain_of = {new: plain for plain, new in self._new.items() if new is not plain}
        for module in self._modules:
            if type(module) in plain_of:
                module.__class__ = plain_of[type(module)]
                continue
            # A module that was parametrized since has a subclass of the new class.
            for kind in type(module).__mro__:
                if not plain_of.keys().isdisjoint(kind.__bases__):
                    kind.__bases__ = tuple(plain_of.get(base, base) for base in kind.__bases__)

    def _leave(self) -> None:
        """Leave the mode that was entered, if its forward pass has not left it.

        No hook runs after a forward pass that ``KeyboardInterrupt`` ended.
        """
        if self._entered is None:
            return
        mode, handle = self._entered
        self._entered = None
        handle.remove()
        _remove_from_stack(mode)

    def _new_class(self, plain: type[nn.Module]) -> type[nn.Module]:
        """Return the class in place of ``plain``: itself if it can't have a subclass."""
        if plain not in self._new:
            self._new[plain] = plain
            if not _registers_subclasses(plain):
                # A class may refuse subclasses. Then torch concatenates, in another layout.
                with contextlib.suppress(Exception):
                    self._new[plain] = _subclass(plain)
        return self._new[plain]


class _Concatenates(TorchFunctionMode):
    """Concatenates maps in the kernels' layout in place of torch.

    Args:
        training: whether the module that runs is in training mode.
    """

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training = training

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled module in the forward pass traces this
            return func(*args, **kwargs)
        if func in _FUNCTIONS and not _may_be_repeated(self.training):
            result = concatenated(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass with the name of ``kind``, whose forward pass runs in the mode.

    A copy or a pickle of its instances has the class ``kind``.
    """

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return kind.forward(self, *args, **kwargs)
        mode = _mode()
        if mode is not None and mode.training == self.training:
            return kind.forward(self, *args, **kwargs)
        with _Concatenates(self.training):
            return kind.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced = kind.__reduce_ex__(self, protocol)
        if not isinstance(reduced, tuple):
            return reduced
        make, args, *state = reduced
        # pickle refuses ``copyreg.__newobj__`` with a class that the instance does not have.
        make = kind.__new__ if make is _NEW else make
        return make, tuple(kind if value is new else value for value in args), *state

    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**names, "forward": forward, "__reduce_ex__": reduce}
    new: type[nn.Module] = new_class(
        kind.__name__, (kind,), exec_body=lambda all_: all_.update(body)
    )
    return new


def _mode() -> _Concatenates | None:
    """Return the innermost mode if it is that of a concatenating module."""
    depth = torch._C._len_torch_function_stack()
    mode = torch._C._get_function_stack_at(depth - 1) if depth else None
    return mode if isinstance(mode, _Concatenates) else None


def _remove_from_stack(mode: _Concatenates) -> None:
    """Remove a mode from this thread's stack of modes, if it is there."""
    depth = torch._C._len_torch_function_stack()
    if all(torch._C._get_function_stack_at(i) is not mode for i in range(depth)):
        return
    above = []
    while (top := torch._C._pop_torch_function_stack()) is not mode:
        above.append(top)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)


def _may_be_repeated(training: bool) -> bool:
    """Whether activation checkpointing may run this code twice.

    The second run, in ``backward()``, may be outside of the module's forward pass. Both runs have
    to return the same layout: modules that follow draw random numbers and save tensors by it.
    """
    return (
        torch._C._current_graph_task_id() != -1
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or (training and not torch.is_grad_enabled())
    )


def _registers_subclasses(kind: type[nn.Module]) -> bool:
    """Whether the definition of a subclass runs code of the user, which may register it."""
    return type(kind) not in _PLAIN_METACLASSES or any(
        "__init_subclass__" in vars(base) for base in kind.__mro__ if base not in _PLAIN_BASES
    )


def _calls_cat(kind: type[nn.Module]) -> bool:
    # GraphModule.recompile() writes methods into the class of its instance.
    if issubclass(kind, GraphModule):
        return False
    return any(not _NAMES.isdisjoint(code.co_names) for code in _codes_of(kind))


def _codes_of(kind: type[nn.Module]) -> Iterator[CodeType]:
    """Return the code of all methods, and of the functions that are defined in them."""
    for base in kind.__mro__:
        if base in nn.Module.__mro__:
            continue
        for value in vars(base).values():
            function = getattr(value, "__func__", value)  # of a static method or a class method
            if inspect.isfunction(function):
                yield from _codes_of_wrappers(function)


def _codes_of_wrappers(function: Any) -> Iterator[CodeType]:
    """Return the code of a function and of all that it wraps, which may be builtins."""
    for _ in range(_MOST_WRAPPERS):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield from _with_inner(code)
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
