"""From the lines of a results file to the numbers of a report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cifar.protocols.methods import METHODS, RECIPES
from benchmarks.cifar.records.results import Record

# How the literature writes the names of `--methods`; all others are written as they are.
TITLES = {
    "dense": "Dense",
    "small-dense": "Small-Dense",
    "static": "Static",
    "set": "SET",
    "rigl": "RigL",
    "rigl-2x": "RigL 2x",
    "rigl-3x": "RigL 3x",
    "snfs": "SNFS",
    "rigl-sg": "RigL-SG",
    "rigl-sm": "RigL-SM",
    "rigl-reinit": "RigL re-init",
    "rigl-struct": "RigL-Struct",
    "srigl": "SRigL",
    "pruning": "Pruning",
    "lottery": "Lottery",
    "granet": "GraNet",
    "mest": "MEST",
    "erk": "ERK",
}


def title(name: str) -> str:
    """A method or an init as the report writes it."""
    return TITLES.get(name, name)


@dataclass(frozen=True)
class Variant:
    """A method at an init and a density; its runs differ in the seed only.

    Attributes:
        method: Name of the method.
        init: Name of the distribution; None for methods that have none.
        density: Live share; None for the dense network.
        settings: What replaces the protocol's own ``alpha``, ``delta_t`` or ``lr``, by name.
    """

    method: str
    init: str | None
    density: float | None
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def title(self) -> str:
        """The variant as tables and plots name it, without the density."""
        name = title(self.method)
        return name if self.init is None else f"{name} ({title(self.init)})"

    @property
    def plain(self) -> Variant:
        """The same with the protocol's own settings."""
        return Variant(self.method, self.init, self.density)

    def setting(self, name: str) -> float | None:
        """What replaces the protocol's own, or None."""
        return dict(self.settings).get(name)

    def order(self) -> tuple[Any, ...]:
        """Sorts dense first, then by density and init, methods in their usual order."""
        known = METHODS.index(self.method) if self.method in METHODS else len(METHODS)
        density = -1.0 if self.density is None else self.density
        return density, self.init or "", known, self.method, self.settings


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation of one value a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation, None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def percent(self, *, sign: bool = False) -> str:
        """Such as ``91.27 ± 0.10``, in percent."""
        mean = f"{100 * self.mean:{'+' if sign else ''}.2f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.2f}"


class Group:
    """All results of one protocol on one data set.

    Args:
        records: Lines of the results file, of one protocol; a run's last line counts.

    Attributes:
        variants: Runs with the protocol's own settings, by variant and seed.
        varied: Runs with other settings (of a search or a sweep), by variant and seed.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.protocol: dict[str, Any] = records[-1]["protocol"]
        self.records = list({record["key"]: record for record in records}.values())
        self.variants: dict[Variant, dict[int, Record]] = {}
        self.varied: dict[Variant, dict[int, Record]] = {}
        by_variant = [(variant_of(record), record) for record in self.records]
        for variant, record in sorted(by_variant, key=lambda pair: pair[0].order()):
            kind = self.varied if variant.settings else self.variants
            kind.setdefault(variant, {})[record["run"]["seed"]] = record

    @property
    def settings(self) -> dict[str, Any]:
        """The protocol's settings."""
        found: dict[str, Any] = self.protocol["settings"]
        return found

    @property
    def dataset(self) -> str:
        return str(self.settings["dataset"])

    def runs(self, variant: Variant) -> dict[int, Record]:
        """Records by seed; empty where there is none yet."""
        return self.variants.get(variant) or self.varied.get(variant) or {}

    def statistic(self, variant: Variant, *path: str) -> Statistic:
        """A value of each seed's record, such as ``("accuracy", "test")``."""
        return self.statistic_of(variant, lambda record: _lookup(record, path))

    def statistic_of(self, variant: Variant, value: Callable[[Record], float]) -> Statistic:
        """What a function makes of each seed's record."""
        runs = self.runs(variant)
        return Statistic(tuple(float(value(runs[seed])) for seed in sorted(runs)))

    def inference_flops(self, variant: Variant) -> float:
        """Mean FLOPs of an inference as a multiple of the full dense network's."""
        own = self.statistic(variant, "flops", "inference").mean
        return own / self.statistic(variant, "flops", "dense_inference").mean

    def training_flops(self, variant: Variant, kind: str = "train") -> float | None:
        """Mean FLOPs of the whole training as a multiple of the full dense network's.

        Longer training counts with its length, and masks that come from another run with that
        run's training, as in the report.

        Args:
            variant: Whose.
            kind: ``"train"``, the method's formula, or ``"train_measured"``.

        Returns:
            None where the run that the masks come from isn't in the results.
        """
        own = self.statistic(variant, "flops", kind).mean
        ratio = own / self.statistic(variant, "flops", "dense_train").mean
        recipe = RECIPES.get(variant.method)
        if recipe is None:
            return ratio
        ratio *= recipe.length
        if recipe.masks_from is None:
            return ratio
        source = Variant(recipe.masks_from, variant.init, variant.density, variant.settings)
        before = self.training_flops(source, kind) if self.runs(source) else None
        return None if before is None else ratio + before


def variant_of(record: Record) -> Variant:
    """Which variant a line of the results file belongs to."""
    run = record["run"]
    own = ("method", "init", "density", "seed")
    changed = {name: value for name, value in run.items() if name not in own and value is not None}
    return Variant(run["method"], run["init"], run["density"], tuple(sorted(changed.items())))


def group_by_protocol(records: Sequence[Record]) -> list[Group]:
    """One group for each protocol and data set, in the order of their first result."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        protocol = record["protocol"]
        identity = json.dumps(
            [protocol["name"], protocol["settings"], record["data"]], sort_keys=True
        )
        groups.setdefault(identity, []).append(record)
    return [Group(members) for members in groups.values()]


def differing_settings(first: Group, other: Group) -> list[str]:
    """In what two protocols of one name differ, such as ``training.epochs (10, not 30)``."""
    theirs, ours = _flat(first.settings), _flat(other.settings)
    found = [
        f"`{name}` ({ours.get(name)}, not {theirs.get(name)})"
        for name in dict.fromkeys([*theirs, *ours])
        if theirs.get(name) != ours.get(name)
    ]
    if first.records[0]["data"] != other.records[0]["data"]:
        found.append("the images")
    return found


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of all sections by their path in a preset file."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _lookup(record: Record, path: tuple[str, ...]) -> Any:
    value: Any = record
    for name in path:
        value = value[name]
    return value
