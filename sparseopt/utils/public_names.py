"""Gives public classes and functions the package's own name as their module."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["adopt_public_names"]


def adopt_public_names(package: str, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
    """Make ``package`` the module of public objects, so that their pickles outlive a moved file.

    A pickle names a class by its module and name. Python also looks up the annotations of a class
    in its module, so they are resolved before the module changes. :func:`inspect.getsource` no
    longer finds the source of such a class; it still finds the source of methods and functions.

    Args:
        package: the name that users import from.
        namespace: the package's names.
        names: the public names among them.
    """
    public = [namespace[name] for name in names]
    for item in public:
        if inspect.isclass(item) and "__annotations__" in vars(item):
            hints = typing.get_type_hints(item, include_extras=True)
            item.__annotations__ = {name: hints[name] for name in item.__annotations__}
    for item in public:
        item.__module__ = package
