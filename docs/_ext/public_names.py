"""What is public: what ``__all__`` names, and the members of its classes."""

import dataclasses
import importlib
import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sparseopt.utils.deprecation import OldName


@dataclass(frozen=True)
class PublicName:
    """Something that a user may rely on.

    Attributes:
        path: how it is imported or reached.
        value: what it is; ``None`` for a field.
        owner: the public class that it is a member of.
        is_field: whether it is an attribute of instances, which the docstring of its class
            describes.
    """

    path: str
    value: Any
    owner: type | None = None
    is_field: bool = False

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]


def public_names(modules: Iterable[str]) -> list[PublicName]:
    """Return all names of the modules' ``__all__``, then the members of the classes among them."""
    exported = [
        PublicName(f"{module.__name__}.{name}", getattr(module, name))
        for module in map(importlib.import_module, modules)
        for name in module.__all__
    ]
    classes = [name for name in exported if inspect.isclass(name.value)]
    public = {name.value for name in classes}
    return [*exported, *(member for name in classes for member in _members(name, public))]


def _members(of: PublicName, public: Collection[type]) -> Iterator[PublicName]:
    """Yield the members that a class has of its own, or from a base that is not public.

    One that overrides a member of a public base is described there.
    """
    cls = of.value
    bases = [base for base in cls.__mro__ if _package(base) == _package(cls)]
    seen = {name for base in bases if base is not cls and base in public for name in _names(base)}
    for base in bases:
        for name in _names(base):
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            value = vars(base).get(name)
            if isinstance(value, OldName):
                continue
            is_field = not (inspect.isroutine(value) or isinstance(value, property))
            yield PublicName(f"{of.path}.{name}", None if is_field else value, cls, is_field)


def _names(cls: type) -> list[str]:
    fields = [field.name for field in dataclasses.fields(cls)] if _is_dataclass(cls) else []
    return list(dict.fromkeys([*vars(cls), *inspect.get_annotations(cls), *fields]))


def _is_dataclass(cls: type) -> bool:
    return "__dataclass_fields__" in vars(cls)


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
