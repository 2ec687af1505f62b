"""The numbers of a report, from the lines of a results file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.cifar.methods import DENSE, RECIPES, Recipe
from benchmarks.cifar.records import Record
from benchmarks.cifar.report.texts import title
from benchmarks.common.tables import MISSING

#: The settings that a search or a sweep varies.
SEARCHED = ("alpha", "delta_t", "lr")
MILLISECONDS_A_MINUTE = 60_000


@dataclass(frozen=True)
class Variant:
    """A method at an init and a density; its runs differ in the seed only."""

    method: str
    init: str | None
    density: float | None
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, run: dict[str, Any]) -> Variant:
        """The variant of a run."""
        own = ("method", "init", "density", "seed", "settings")
        changed = {name: value for name, value in run.items() if name not in own}
        changed |= run.get("settings", {})
        settings = sorted((name, value) for name, value in changed.items() if value is not None)
        return cls(run["method"], run["init"], run["density"], tuple(settings))

    @property
    def name(self) -> str:
        """The method with its changed settings, such as ``GraNet, initial 0.8``."""
        changed = (
            f", {name} {value:.3g}" if isinstance(value, float) else f", {name} {value}"
            for name, value in self.settings
        )
        return title(self.method) + "".join(changed)

    @property
    def title(self) -> str:
        """The variant's name in tables and plots, without the density."""
        return self.name if self.init is None else f"{self.name} ({title(self.init)})"

    @property
    def label(self) -> str:
        """The variant's name in a legend."""
        return self.title if self.density is None else f"{self.title} {self.density:.3g}"

    @property
    def plain(self) -> Variant:
        """The same variant with the protocol's own alpha, delta_t and learning rate."""
        own = tuple(pair for pair in self.settings if pair[0] not in SEARCHED)
        return dataclasses.replace(self, settings=own)

    @property
    def cells(self) -> dict[str, str]:
        """The cells that name the variant of a table's row."""
        density = MISSING if self.density is None else f"{self.density:.3g}"
        init = MISSING if self.init is None else title(self.init)
        return {"method": self.name, "init": init, "density": density}

    def order(self) -> tuple[Any, ...]:
        """The sort key: dense first, then by density and init, methods in their usual order."""
        names = list(RECIPES)
        known = names.index(self.method) if self.method in names else len(names)
        density = -1.0 if self.density is None else self.density
        return density, self.init or "", known, self.method, self.settings

    def __lt__(self, other: Variant) -> bool:
        return self.order() < other.order()


class Group:
    """All results of one protocol on one data set.

    Args:
        records: Lines of the results file, of one protocol; a run's last line counts.

    Attributes:
        test: Test accuracies, a row for each variant and a column for each seed.
        variants: The variants with the protocol's own settings, in their usual order.
        deviation: Standard deviation of one run's accuracy. A few seeds are too few to estimate it,
            so all runs are used: the residuals after subtracting the mean of the variant and the
            mean of the seed (a randomised block design, with the seeds as blocks). None if there
            are no degrees of freedom, as with a single seed.
        freedom: The degrees of freedom of ``deviation``.
        machine: The processor and the device whose times are compared, because times of different
            processors are not comparable. A processor that trained the dense network comes first,
            and then the processor that trained most of ``variants``.
        machines: The number of different processors and devices.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.protocol: dict[str, Any] = records[-1]["protocol"]
        self.settings: dict[str, Any] = self.protocol["settings"]
        self.dataset = str(self.settings["dataset"])
        self.records = list({record["key"]: record for record in records}.values())
        runs = pd.json_normalize(self.records)
        runs["variant"] = [Variant.of(record["run"]) for record in self.records]
        runs["record"] = self.records
        runs = runs.drop_duplicates(["variant", "run.seed"], keep="last")
        self.test = runs.pivot(index="variant", columns="run.seed", values="accuracy.test")
        numbers = runs.select_dtypes("number").groupby(runs["variant"])
        self._numbers = numbers.agg([("mean", fmean), "std"])
        self._records = runs.groupby("variant")["record"].agg(list)
        self.variants = [variant for variant in self.test.index if variant == variant.plain]
        reached = Counter(
            machine
            for variant in self.variants or self.test.index
            for machine in set(map(_machine_of, self.of(variant)))
        )
        dense = self.dense()
        trained_dense = set() if dense is None else set(map(_machine_of, self.of(dense)))
        self.machine = max(reached, key=lambda one: (one in trained_dense, reached[one]))
        self.machines = len(set(map(_machine_of, self.records)))
        codes = [pd.factorize(runs[name])[0] for name in ("variant", "run.seed")]
        design = np.hstack([pd.get_dummies(one) for one in codes]).astype(float)
        accuracies = runs["accuracy.test"].to_numpy()
        means, _, rank, _ = np.linalg.lstsq(design, accuracies, rcond=None)
        self.freedom = len(runs) - int(rank)
        squares = float(np.sum((accuracies - design @ means) ** 2))
        self.deviation = math.sqrt(squares / self.freedom) if self.freedom else None

    def __contains__(self, variant: Variant) -> bool:
        return variant in self._records

    def of(self, variant: Variant) -> list[Record]:
        """The records of a variant, one for each seed."""
        return list(self._records.get(variant, []))

    def recipe(self, variant: Variant) -> Recipe:
        """How a variant was trained, as its last run recorded it; old results have no record."""
        recorded = self.of(variant)[-1].get("recipe")
        if recorded is None:
            return RECIPES.get(variant.method, Recipe(variant.method))
        return Recipe(**recorded)

    def timed(self, variant: Variant) -> list[Record]:
        """The records of a variant whose times can be compared; see ``machine``."""
        return [run for run in self.of(variant) if _machine_of(run) == self.machine]

    def mean(self, variant: Variant, number: str) -> float:
        """The mean over the seeds of a number in the record, by its path such as `flops.train`."""
        return float(self._numbers.at[variant, (number, "mean")])

    def std(self, variant: Variant, number: str = "accuracy.test") -> float | None:
        """Sample standard deviation; None for a single value."""
        found = self._numbers.at[variant, (number, "std")]
        return None if pd.isna(found) else float(found)

    def percent(self, variant: Variant, number: str = "accuracy.test") -> str:
        """Mean and deviation of an accuracy, such as ``91.27 ± 0.10``; a dash without a run."""
        if variant not in self:
            return MISSING
        return percent(self.mean(variant, number), self.std(variant, number))

    def inference_flops(self, variant: Variant) -> float:
        """Mean FLOPs of an inference as a multiple of the full dense network's."""
        return self.mean(variant, "flops.inference") / self.mean(variant, "flops.dense_inference")

    def training_flops(self, variant: Variant, kind: str = "train") -> float | None:
        """Mean FLOPs of the full training as a multiple of the full dense network's.

        Longer training counts in proportion to its length. If the masks come from another run, the
        training of that run is added; None if that run is not in the results.
        """
        ratio = self.mean(variant, f"flops.{kind}") / self.mean(variant, "flops.dense_train")
        ratio *= self.recipe(variant).length
        before = self._before(variant, lambda source: self.training_flops(source, kind))
        return None if before is None else ratio + before

    def quiet_step(self, variant: Variant) -> float | None:
        """CPU milliseconds of a training step in a run's quietest epoch, mean over the seeds.

        Only runs on ``machine`` count, and only if it is a CPU: beside a GPU, the CPU only issues
        work. None if there is no such run, or if one lacks CPU times, as the oldest runs do.
        """
        on_cpus = [run for run in self.timed(variant) if run["environment"]["device"] == "cpu"]
        times = [run.get("cpu", {}).get("quiet_ms_a_step") for run in on_cpus]
        return None if None in times or not times else fmean(times)

    def cpu_minutes(self, variant: Variant) -> float | None:
        """CPU time of the full training at the pace of its quietest epoch; None if unknown.

        As with FLOPs, it includes the time of the run from which the masks come.
        """
        step, before = self.quiet_step(variant), self._before(variant, self.cpu_minutes)
        if step is None or before is None:
            return None
        return before + step * self.mean(variant, "steps") / MILLISECONDS_A_MINUTE

    def training_time(self, variant: Variant) -> float | None:
        """The CPU time as a multiple of the dense network's; None if either is unknown."""
        dense, own = self.dense(), self.cpu_minutes(variant)
        full = None if dense is None else self.cpu_minutes(dense)
        return None if own is None or full is None else own / full

    def _before(self, variant: Variant, cost: Callable[[Variant], float | None]) -> float | None:
        """The cost of the run from which masks come: 0 without such a run, None if unknown."""
        masks_from = self.recipe(variant).masks_from
        if masks_from is None:
            return 0.0
        source = dataclasses.replace(variant, method=masks_from)
        return cost(source) if source in self else None

    def dense(self) -> Variant | None:
        """The dense network, if it was trained."""
        return next((variant for variant in self.variants if variant.method == DENSE), None)


def _machine_of(record: Record) -> tuple[str, str]:
    return record["environment"]["processor"], record["environment"]["device"]


def percent(mean: float, std: float | None, *, sign: bool = False) -> str:
    """Such as ``91.27 ± 0.10``, in percent."""
    text = f"{100 * mean:{'+' if sign else ''}.2f}"
    return text if std is None else f"{text} ± {100 * std:.2f}"


def multiple(value: float | None) -> str:
    """A multiple of the dense network's, such as ``0.161x``."""
    return MISSING if value is None else f"{value:.3f}x"


def group_by_protocol(records: Sequence[Record]) -> list[Group]:
    """One group for each protocol and data set, in the order of their first result.

    Settings and data decide which records belong together; a protocol may have several names. If
    groups have the same label, the settings that differ are added to label and description.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        identity = [record["protocol"]["settings"], record["data"]]
        members.setdefault(json.dumps(identity, sort_keys=True), []).append(record)
    groups = [Group(each) for each in members.values()]
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.protocol["label"], []).append(group)
    for several in alike.values():
        _tell_apart(several)
    return groups


def _tell_apart(groups: Sequence[Group]) -> None:
    """Add the settings in which the groups differ to their labels and descriptions."""
    settings = [
        {**dict(_by_path(group.settings)), "data": group.records[-1]["data"]} for group in groups
    ]
    names = dict.fromkeys(itertools.chain.from_iterable(settings))
    # A setting that is newer than a result is missing there.
    values = {name: [one.get(name, "default") for one in settings] for name in names}
    differing = [name for name in names if any(one != values[name][0] for one in values[name])]
    for number, group in enumerate(groups):
        words = ", ".join(f"{name}={values[name][number]}" for name in differing)
        if words:
            label, description = group.protocol["label"], group.protocol["description"]
            told = {"label": f"{label} ({words})", "description": f"{description}, {words}"}
            group.protocol = {**group.protocol, **told}


def _by_path(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its path, such as ``optimizer.lr``."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _by_path(value, f"{before}{name}.")
        else:
            yield before + name, value
