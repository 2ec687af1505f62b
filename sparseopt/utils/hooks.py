"""Hooks that an optimizer registers on a user's model, and copies of the model without them."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

__all__ = [
    "CallWithoutArguments",
    "Handle",
    "OwnHook",
    "WeakHook",
    "call_after_forward",
    "call_before_forward",
    "computed_tensors",
    "copy_without_hooks",
    "has_hooks",
    "has_own_code",
    "has_own_functions",
]

#: ``torch.jit.script`` calls this method of a module and scripts what it returns.
PREPARE: Final = "__prepare_scriptable__"


class OwnHook:
    """A hook of this library, or an object whose methods are such hooks."""


class WeakHook(OwnHook):
    """Calls a method through a weak reference, and does not keep the method's object alive.

    In a copy of the model, or in a pickle, it does nothing, because the optimizer belongs to the
    original model.

    Args:
        act: the method.
    """

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act: weakref.WeakMethod[Callable[..., Any]] | None = weakref.WeakMethod(act)

    def act(self, *args: Any) -> None:
        """Call the method if its object is still there."""
        act = None if self._act is None else self._act()
        if act is not None:
            act(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_act": None}


class CallWithoutArguments(WeakHook):
    """Calls a method, held weakly, without the arguments that the hook gets."""

    def __call__(self, *_: Any) -> None:
        """Call the method if its object is still there."""
        self.act()


def copy_without_hooks(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` that has the user's own hooks only."""
    copied = copy.deepcopy(model, computed_tensors(model))
    for module in copied.modules():
        if isinstance(vars(module).get(PREPARE), _CopyToScript):
            delattr(module, PREPARE)
        for hooks in (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._state_dict_pre_hooks,
            module._load_state_dict_pre_hooks,
        ):
            for number in [number for number, hook in hooks.items() if _is_own(hook)]:
                del hooks[number]
                for marks in _marks_of(module):
                    marks.pop(number, None)
    return copied


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Return the memo with which ``copy.deepcopy`` copies tensors that modules have computed.

    torch can't copy a tensor with an autograd history, such as a weight that a hook computed, or
    outputs that a forward pass kept in a list.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in tree_leaves(list(vars(module).values()))
        if isinstance(value, Tensor) and not value.is_leaf
    }


def _marks_of(module: nn.Module) -> list[dict[int, bool]]:
    """Return where a module notes how its hooks are called, by the number of the hook."""
    return [
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ]


def has_hooks(module: nn.Module) -> bool:
    """Whether the forward or backward pass of ``module`` runs hooks."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def has_own_functions(module: nn.Module) -> bool:
    """Whether a function of the class, such as ``forward``, is replaced on ``module`` itself."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


def has_own_code(module: nn.Module) -> bool:
    """Whether ``module`` may compute something else than its class, by hooks or own functions."""
    return has_hooks(module) or has_own_functions(module)


class Handle(Protocol):
    """Removes a hook."""

    def remove(self) -> None:
        """Remove the hook."""


def call_before_forward(
    model: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False
) -> Handle:
    """Register a hook of this library on ``model``, and keep the model scriptable.

    ``torch.jit.script`` compiles the hooks of a module, and it cannot compile this hook. As long as
    the model has such hooks, ``torch.jit.script`` gets a copy without them, of the same tensors.
    """
    handle = model.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    return _scriptable(model, handle)


def call_after_forward(model: nn.Module, hook: Callable[..., Any]) -> Handle:
    """Register a hook of this library that runs before the user's, and keep the model scriptable.

    See :func:`call_before_forward`.
    """
    return _scriptable(model, model.register_forward_hook(hook, prepend=True))


def _scriptable(model: nn.Module, handle: RemovableHandle) -> Handle:
    if not hasattr(model, PREPARE):
        setattr(model, PREPARE, _CopyToScript(model))
    return _Handle(model, handle)


class _OfModel:
    """Holds a weak reference to a model; a copy or pickle of the model refers to the copy."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        model = state["_model"]
        self.__dict__.update(state, _model=weakref.ref(nn.Module() if model is None else model))


class _Handle(_OfModel):
    def __init__(self, model: nn.Module, handle: RemovableHandle) -> None:
        super().__init__(model)
        self._handle = handle

    def remove(self) -> None:
        self._handle.remove()
        model = self._model()
        if model is None:
            return
        hooks = (*model._forward_pre_hooks.values(), *model._forward_hooks.values())
        if not any(map(_is_own, hooks)):
            vars(model).pop(PREPARE, None)


class _CopyToScript(_OfModel):
    def __call__(self) -> nn.Module:
        model = self._model()
        assert model is not None
        copied = _copied_tree(model, {})
        copied._forward_pre_hooks = _of_user(model._forward_pre_hooks)
        copied._forward_pre_hooks_with_kwargs = OrderedDict(
            (number, mark)
            for number, mark in model._forward_pre_hooks_with_kwargs.items()
            if number in copied._forward_pre_hooks
        )
        copied._forward_hooks = _of_user(model._forward_hooks)
        vars(copied).pop(PREPARE, None)
        return copied


def _copied_tree(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return copies of a module and of the modules in it, with the same tensors.

    ``torch.jit.script`` replaces modules in what it is given.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in known:
        known[module] = copy.copy(module)
        known[module]._modules = {
            name: None if child is None else _copied_tree(child, known)
            for name, child in module._modules.items()
        }
    return known[module]


def _of_user(hooks: Mapping[int, Callable[..., Any]]) -> OrderedDict[int, Callable[..., Any]]:
    return OrderedDict((number, hook) for number, hook in hooks.items() if not _is_own(hook))


def _is_own(hook: Any) -> bool:
    # torch wraps hooks of load_state_dict(); the object of a bound method is its __self__.
    hook = getattr(hook, "hook", hook)
    return isinstance(getattr(hook, "__self__", hook), OwnHook)
