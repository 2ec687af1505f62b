"""Checks that a class meets the requirements of a method before it is registered."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping, MutableSequence, MutableSet
from typing import Any, Final

from torch import Tensor

from sparseopt.methods.base import DropGrow, Method

__all__ = ["check_promises"]

#: The class attributes that describe a method, and the type of each.
FLAGS: Final[Mapping[str, type]] = {
    "name": str,
    "needs_dense_gradient": bool,
    "needs_gradient": bool,
    "needs_horizon": bool,
    "moves_masks": bool,
    "has_own_schedule": bool,
    "keeps_live_counts": bool,
    "reaches_target_at_t_end": bool,
    "observes_dense_gradient": bool,
    "follows_mask": tuple,
}
#: Flags that have no effect unless the class overrides the function.
TOGETHER: Final = {
    "observes_dense_gradient": "observe",
    "follows_mask": "initial_layer_state",
}


def check_promises(cls: object) -> None:
    """Raise :class:`TypeError` unless ``cls`` is a method that can be made by its name alone.

    Such a class is a concrete subclass of :class:`Method` and a frozen dataclass. All its fields
    have defaults that can't be mutated. Its flags have the right types, and the functions that it
    overrides take the arguments of the base class.
    """
    if not isinstance(cls, type) or not issubclass(cls, Method) or cls in (Method, DropGrow):
        raise TypeError(f"register_method got {cls!r}, which is not a concrete Method subclass.")
    for complaint in _complaints(cls):
        raise TypeError(f"register_method got {cls.__name__}: {complaint}")


def _complaints(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong with ``cls``. Each check may rely on the success of earlier checks."""
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        yield f"it is not a concrete Method subclass: it lacks {', '.join(missing)}()."
    if "__dataclass_params__" not in vars(cls):
        yield (
            "it is not a dataclass. Write @register_method above @dataclass(frozen=True), and both "
            "above the class."
        )
    yield from _about_flags(cls)
    yield from _about_fields(cls)
    yield from _about_signatures(cls)


def _about_flags(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong with the flags.

    A flag must be an attribute of the class and have the right type, and the class must override
    the function that the flag is about. A name similar to a flag is taken for a misspelling.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    for flag, kind in FLAGS.items():
        if flag in fields:
            yield (
                f"{flag} is a field of the dataclass, which every instance could set: annotate it "
                "as ClassVar, or not at all."
            )
        value = getattr(cls, flag, None)
        if isinstance(value, property):
            continue
        if not isinstance(value, kind):
            yield f"{flag}={value!r} must be of type {kind.__name__}."
    if not cls.name:
        yield f"name={cls.name!r} must be a non-empty string."
    for flag, function in TOGETHER.items():
        if getattr(cls, flag) and getattr(cls, function) is getattr(Method, function):
            yield f"{flag}={getattr(cls, flag)!r} has no effect without {function}()."
    for name, value in vars(cls).items():
        near = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.85)
        if isinstance(value, bool) and name not in FLAGS and name not in fields and near:
            yield f"{name} is not a flag; did you mean {near[0]!r}?"


def _about_fields(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong with the fields: each needs a default that cannot be mutated."""
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        if field.default is dataclasses.MISSING and factory is dataclasses.MISSING:
            yield (
                f"its field {field.name!r} has no default, so that it can't be made from its name "
                "alone."
            )
    try:
        instance = cls()
    except (TypeError, ValueError) as error:
        yield f"{cls.__name__}() with its defaults fails: {error}"
        return
    for field in dataclasses.fields(cls):
        value: Any = getattr(instance, field.name)
        if isinstance(value, (dict, MutableSequence, MutableSet, Tensor)):
            yield (
                f"its field {field.name!r} is a {type(value).__name__}, which may change: put "
                "state into initial_layer_state() or initial_run_state(), so that checkpoints "
                "contain it."
            )


def _about_signatures(cls: type[Method]) -> Iterator[str]:
    """Yield the functions that do not take the arguments with which the library calls them.

    These arguments are in the signature of the base class that first defines the function.
    """
    *bases, _ = cls.__mro__
    for name in {name: None for base in bases for name in vars(base) if name[0] != "_"}:
        defined = [vars(base)[name] for base in bases if inspect.isfunction(vars(base).get(name))]
        if len(defined) < 2:
            continue
        # The library calls a function as the class that first defined it declares it.
        used, first = defined[0], defined[-1]
        wanted = inspect.signature(first).parameters.values()
        by_name = {item.name: None for item in wanted if item.kind is item.KEYWORD_ONLY}
        by_place = [item.name for item in wanted if item.kind is item.POSITIONAL_OR_KEYWORD]
        try:
            inspect.signature(used).bind(*by_place, **by_name)
        except TypeError:
            yield (
                f"{name}{inspect.signature(used)} must take ({', '.join([*by_place, *by_name])}), "
                "because it is called with these arguments."
            )
