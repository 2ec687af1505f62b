"""The registry of methods by name."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from sparseopt.masks.drop_and_grow import Regrow
from sparseopt.methods.base import Method
from sparseopt.methods.promises import check_promises
from sparseopt.utils.validation import unknown_name

__all__ = ["available_methods", "get_method", "register_method"]

_METHODS: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register_method(cls: M) -> M:
    """Make a method reachable by its ``name``; use it as a class decorator.

    Args:
        cls: a concrete subclass of :class:`Method`: a frozen dataclass whose fields all have
            defaults that can't be mutated, with a ``name`` that no other method has. Its flags have
            the right types, and the functions that it overrides take the same arguments.

    Returns:
        ``cls`` itself.

    Raises:
        TypeError: if ``cls`` is not such a class; the message says what is wrong with it.
        ValueError: if another method has the name.

    Example:
        >>> from dataclasses import dataclass
        >>> from sparseopt import DropGrow
        >>> @register_method
        ... @dataclass(frozen=True)
        ... class GrowLightest(DropGrow):
        ...     name = "grow-lightest"
        ...     def grow_scores(self, layer, update):
        ...         return -layer.weight.abs()
        >>> "grow-lightest" in available_methods()
        True
    """
    check_promises(cls)
    name = cls.name
    taken = _METHODS.get(name)
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ValueError(f"the method name {name!r} is taken by {taken!r}.")
    _METHODS[name] = cls
    return cls


def available_methods() -> tuple[str, ...]:
    """Return the names that ``method=`` takes, in alphabetical order.

    Example:
        >>> "rigl" in available_methods()
        True
    """
    return tuple(sorted(_METHODS))


def get_method(method: str | Method, *, regrow: Regrow | None = None) -> Method:
    """Return the method that a name or an instance stands for.

    Args:
        method: a registered name, or an instance, which is returned as it is.
        regrow: the value of the method's ``regrow``; only together with a name.

    Raises:
        TypeError: if ``method`` is neither.
        ValueError: if the name is not known, or ``regrow`` is given beside an instance.
    """
    if isinstance(method, Method):
        if regrow is not None:
            raise ValueError(
                f"regrow={regrow!r} is given twice: method={method!r} has regrow={method.regrow!r} "
                "already. Set it on the method."
            )
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method={method!r} must be a name ({', '.join(available_methods())}) or a Method."
        )
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    instance = _METHODS[method]()
    return instance if regrow is None else dataclasses.replace(instance, regrow=regrow)
