"""What a class promises by being registered as a method, checked once and said by name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping, MutableSequence, MutableSet
from typing import Any, Final

from torch import Tensor

from sparseopt.methods.base import DropGrow, Method

__all__ = ["check_promises"]

#: Attributes of the class by which a method says what it needs, and the type of each.
FLAGS: Final[Mapping[str, type]] = {
    "name": str,
    "needs_dense_gradient": bool,
    "needs_gradient": bool,
    "needs_horizon": bool,
    "moves_masks": bool,
    "has_own_schedule": bool,
    "reaches_target_at_t_end": bool,
    "observes_dense_gradient": bool,
    "follows_mask": tuple,
}
#: Flags that mean something only beside a function of the class.
TOGETHER: Final = {
    "observes_dense_gradient": "observe",
    "follows_mask": "initial_layer_state",
}


def check_promises(cls: object) -> None:
    """Raise :class:`TypeError` unless ``cls`` is a method that can be reached by its name.

    It is a concrete subclass of :class:`Method`, a frozen dataclass with defaults for all fields
    and nothing in them that changes; its flags have their types; and the functions that it
    overrides take what they will be given.
    """
    if not isinstance(cls, type) or not issubclass(cls, Method) or cls in (Method, DropGrow):
        raise TypeError(f"register_method got {cls!r}, which is not a concrete Method subclass.")
    for complaint in _complaints(cls):
        raise TypeError(f"register_method got {cls.__name__}: {complaint}")


def _complaints(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong, the most basic first; each may rely on those before."""
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        yield f"it is not a concrete Method subclass, for it lacks {', '.join(missing)}()."
    if "__dataclass_params__" not in vars(cls):
        yield (
            "it is no dataclass. Write @register_method above @dataclass(frozen=True), and both "
            "above the class."
        )
    yield from _about_flags(cls)
    yield from _about_fields(cls)
    yield from _about_signatures(cls)


def _about_flags(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong with the flags.

    A flag must belong to the class, have the right type, and come with the function that it
    announces. A name close to a flag's is taken for a misspelling.
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
            yield f"{flag}={getattr(cls, flag)!r} means nothing without {function}()."
    for name, value in vars(cls).items():
        near = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.85)
        if isinstance(value, bool) and name not in FLAGS and name not in fields and near:
            yield f"{name} is no flag; did you mean {near[0]!r}?"


def _about_fields(cls: type[Method]) -> Iterator[str]:
    """Yield what is wrong with the fields: each needs a default that cannot be mutated."""
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        if field.default is dataclasses.MISSING and factory is dataclasses.MISSING:
            yield f"its field {field.name!r} has no default, so that a name can't stand for it."
    try:
        instance = cls()
    except (TypeError, ValueError) as error:
        yield f"{cls.__name__}() with its defaults fails: {error}"
        return
    for field in dataclasses.fields(cls):
        value: Any = getattr(instance, field.name)
        if isinstance(value, (dict, MutableSequence, MutableSet, Tensor)):
            yield (
                f"its field {field.name!r} is a {type(value).__name__}, which may change: what a "
                "method keeps belongs into initial_layer_state() or initial_run_state(), so that "
                "it is in checkpoints."
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
        # What calls a function knows the class that had it first.
        used, first = defined[0], defined[-1]
        wanted = inspect.signature(first).parameters.values()
        by_name = {one.name: None for one in wanted if one.kind is one.KEYWORD_ONLY}
        by_place = [one.name for one in wanted if one.kind is one.POSITIONAL_OR_KEYWORD]
        try:
            inspect.signature(used).bind(*by_place, **by_name)
        except TypeError:
            yield (
                f"{name}{inspect.signature(used)} must take ({', '.join([*by_place, *by_name])}), "
                "for that is how it is called."
            )
