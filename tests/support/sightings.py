"""Which optimizers a test wraps, and how: what it really did, whatever its parameters say."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from sparseopt.optimizer.state import CompactState

# Where these are None, torch chooses.
_IMPLEMENTATIONS = ("foreach", "fused")
_ASPECTS = ("state", "dtypes", "used", "offered")


class Sighting(NamedTuple):
    """One fact about an optimizer that was wrapped, or refused.

    Attributes:
        package: Where its class is from, such as "torch".
        optimizer: The name of its class.
        aspect: "state", "dtypes", "used" or "offered" options, or "refused".
        value: Such as "compact", "bfloat16", "fused"; nothing for "refused".
    """

    package: str
    optimizer: str
    aspect: str
    value: str


@contextmanager
def watching() -> Iterator[set[Sighting]]:
    """A set that grows by what is wrapped meanwhile, and keeps no optimizer alive."""
    seen: set[Sighting] = set()
    construct = SparseOptimizer.__init__

    @functools.wraps(construct)
    def construct_and_note(optimizer: SparseOptimizer, *args: Any, **kwargs: Any) -> None:
        try:
            construct(optimizer, *args, **kwargs)
        except Exception:
            inner = args[0] if args else kwargs.get("optimizer")
            if isinstance(inner, Optimizer):
                seen.add(Sighting(*_class_of(inner), "refused", ""))
            raise
        seen.update(_facts(optimizer))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparseOptimizer, "__init__", construct_and_note)
        yield seen


def _facts(optimizer: SparseOptimizer) -> Iterator[Sighting]:
    inner = optimizer.inner
    about = _class_of(inner)
    compact = isinstance(optimizer.backend, CompactState)
    yield Sighting(*about, "state", "compact" if compact else "masked")
    for layer in optimizer.layers:
        yield Sighting(*about, "dtypes", str(layer.weight.dtype).removeprefix("torch."))
    options = _options(inner)
    for name, used in options.items():
        yield Sighting(*about, "offered", name)
        if used:
            yield Sighting(*about, "used", name)


def _options(inner: Optimizer) -> dict[str, bool]:
    """Its switches and implementations, and whether each is on."""
    options = {
        key: bool(value)
        for key, value in inner.defaults.items()
        if isinstance(value, bool) or key in _IMPLEMENTATIONS
    }
    if "foreach" in options:
        options["for-loop"] = inner.defaults["foreach"] is False and not options.get("fused")
    return options


def _class_of(inner: Optimizer) -> tuple[str, str]:
    return type(inner).__module__.partition(".")[0], type(inner).__name__


def sightings_by_class(seen: Iterable[Sighting]) -> list[dict[str, Any]]:
    """One JSON object for each class; without any state it was only ever refused."""
    classes: dict[tuple[str, str], dict[str, Any]] = {}
    for fact in sorted(seen):
        entry = classes.setdefault(
            (fact.package, fact.optimizer),
            {
                "package": fact.package,
                "optimizer": fact.optimizer,
                **{aspect: [] for aspect in _ASPECTS},
            },
        )
        if fact.aspect in _ASPECTS:
            entry[fact.aspect].append(fact.value)
    return list(classes.values())
