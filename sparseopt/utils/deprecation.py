"""Spellings of an earlier version, which still work and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["OldName", "renamed_arguments", "renamed_fields", "renamed_member", "warn_old_spelling"]

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T", bound=type)


def warn_old_spelling(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that the caller's code uses a spelling that a later version will refuse.

    Args:
        old: the spelling in the caller's code.
        new: the spelling to write instead.
        stacklevel: 1 is the function that calls this one, 2 is its caller, and so on. The warning
            names the file and line of that frame.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_old_spelling("f(a, b)", "f((a, b))")
        >>> print(caught[0].message)
        f(a, b) is an old spelling, which a later version will refuse: write f((a, b)).
    """
    warnings.warn(
        f"{old} is an old spelling, which a later version will refuse: write {new}.",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def renamed_arguments(**new_names: str) -> Callable[[C], C]:
    """Let a function take keyword arguments by their old names too, with a warning.

    For a class, decorate its ``__init__``. The signature shows the new names only.

    Args:
        new_names: the new name of each argument, by its old name.

    Raises:
        TypeError: on the call, if an argument is given by both names.

    Example:
        >>> @renamed_arguments(decay="beta")
        ... def smooth(beta):
        ...     return beta
        >>> smooth(beta=0.9)
        0.9
    """

    def decorate(function: C) -> C:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{old}= is the old name of {new}=: give {new}= alone.")
                warn_old_spelling(f"{old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(C, call)

    return decorate


class OldName(property):
    """The old name of a member of a class, which still works; the reference leaves it out."""


def renamed_member(old: str, new: str) -> OldName:
    """Return a property that reads the member ``new`` by its old name, with a warning.

    Example:
        >>> class Tank:
        ...     def volume(self):
        ...         return 3.0
        ...     size = renamed_member("size", "volume")
        >>> Tank().volume()
        3.0
    """
    # Without a docstring, so that the reference leaves it out.
    return OldName(functools.partial(_read, old=old, new=new), doc="")


def renamed_fields(**new_names: str) -> Callable[[T], T]:
    """Let users give and read the fields of a dataclass by their old names too, with a warning.

    Write it above ``@dataclass``, and above the subclasses too: each has its own ``__init__``.

    Args:
        new_names: the new name of each field, by its old name.

    Raises:
        TypeError: when an instance is made, if a field is given by both names.

    Example:
        >>> from dataclasses import dataclass
        >>> @renamed_fields(decay="beta")
        ... @dataclass(frozen=True)
        ... class Average:
        ...     beta: float
        >>> Average(beta=0.9)
        Average(beta=0.9)
    """

    def decorate(cls: T) -> T:
        init = vars(cls)["__init__"]
        cls.__init__ = renamed_arguments(**new_names)(init)  # type: ignore[misc]
        for old, new in new_names.items():
            setattr(cls, old, renamed_member(old, new))
        return cls

    return decorate


def _read(instance: object, *, old: str, new: str) -> object:
    warn_old_spelling(f".{old}", f".{new}", stacklevel=2)
    return getattr(instance, new)
