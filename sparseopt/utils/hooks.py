"""Hooks that an optimizer hangs onto a user's model, and copies of the model without them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["OwnHook", "WeakHook", "copy_without_hooks"]


class OwnHook:
    """A hook of this library, or an object whose methods are such hooks."""


class WeakHook(OwnHook):
    """Calls a method, and does not keep its object alive.

    In a copy of the model, or in a pickle, it does nothing: the optimizer is another model's.

    Args:
        act: the method.
    """

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act: weakref.WeakMethod[Callable[[], Any]] | None = weakref.WeakMethod(act)

    def act(self) -> None:
        """Call the method if its object is still there."""
        act = None if self._act is None else self._act()
        if act is not None:
            act()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_act": None}


def copy_without_hooks(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` that has the user's own hooks only."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        before_forward = module._forward_pre_hooks
        for hooks in (
            before_forward,
            module._state_dict_pre_hooks,
            module._load_state_dict_pre_hooks,
        ):
            for number, hook in list(hooks.items()):
                if _is_own(hook):
                    del hooks[number]
                    if hooks is before_forward:
                        module._forward_pre_hooks_with_kwargs.pop(number, None)
    return copied


def _is_own(hook: Any) -> bool:
    # torch wraps hooks of load_state_dict(), and a bound method has its object.
    hook = getattr(hook, "hook", hook)
    return isinstance(getattr(hook, "__self__", hook), OwnHook)
