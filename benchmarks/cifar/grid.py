"""One run, and the runs of a preset: products of methods, inits, densities, settings and seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from benchmarks.cifar.methods import (
    DENSE,
    SMALL_DENSE,
    check_init,
    check_method,
    method_with,
    recipe_of,
)
from benchmarks.cifar.settings import Section

if TYPE_CHECKING:
    from benchmarks.cifar.config import Protocol

MAIN, SEARCH, TIMING = "main", "search", "timing"


@dataclass(frozen=True)
class RunSpec:
    """One run of a protocol: which method, at which density, from which seed.

    ``dense`` has neither ``init`` nor ``density``; ``small-dense`` has no ``init``. If given,
    ``alpha``, ``delta_t`` and ``lr`` replace the protocol's values, and ``settings`` the method's
    defaults.

    Example:
        >>> RunSpec("rigl", "erk", 0.1, 0, alpha=0.4, delta_t=200).label
        'rigl-erk-0.1-alpha0.4-dt200-seed0'
    """

    method: str
    init: str | None
    density: float | None
    seed: int
    alpha: float | None = None
    delta_t: int | None = None
    lr: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def variant(self) -> str:
        """The run without its seed, such as ``rigl-erk-0.1``."""
        given = {"alpha": self.alpha, "dt": self.delta_t, "lr": self.lr, **dict(self.settings)}
        parts = [self.method, self.init, None if self.density is None else f"{self.density:g}"]
        parts += [
            f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
            for name, value in given.items()
            if value is not None
        ]
        return "-".join(part for part in parts if part is not None)

    @property
    def label(self) -> str:
        """The run's name, such as ``rigl-erk-0.1-seed0``."""
        return f"{self.variant}-seed{self.seed}"

    @property
    def source(self) -> RunSpec | None:
        """The run whose final masks this one starts with, if there is one."""
        masks_from = recipe_of(self.method).masks_from
        return None if masks_from is None else dataclasses.replace(self, method=masks_from)

    def as_dict(self) -> dict[str, Any]:
        """The fields in the results file; values that are not given are left out."""
        fields = {**dataclasses.asdict(self), "settings": dict(self.settings)}
        own = ("method", "init", "density", "seed")
        return {name: value for name, value in fields.items() if name in own or value}

    def without_defaults(self, protocol: Protocol) -> RunSpec:
        """The same run without settings that only repeat the protocol, so that names are equal."""
        own = {
            "alpha": protocol.sparsity.alpha,
            "delta_t": protocol.sparsity.delta_t,
            "lr": protocol.optimizer.lr,
        }
        repeated = {name: None for name, value in own.items() if getattr(self, name) == value}
        return dataclasses.replace(self, **repeated)

    def key(self, protocol: Protocol, data: str) -> str:
        """A name that changes with every setting and with the data's fingerprint."""
        settings = {"protocol": protocol.settings(), "run": self.as_dict(), "data": data}
        text = json.dumps(settings, sort_keys=True)
        return f"{self.label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


DENSE_RUN = RunSpec(DENSE, None, None, 0)


def _pairs(table: Any) -> Any:
    if isinstance(table, dict):
        return tuple(sorted(table.items()))
    # Choices that the command line narrows were parsed before, so they are pairs already.
    return tuple(map(tuple, table)) if isinstance(table, list) else table


Method = Annotated[str, AfterValidator(check_method)]
Init = Annotated[str, AfterValidator(check_init)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
#: A table, as pairs.
Settings = Annotated[tuple[tuple[str, bool | int | float | str], ...], BeforeValidator(_pairs)]


class MaskSetting(Section):
    """A pair that replaces the protocol's pair."""

    alpha: Share
    delta_t: Count


class Product(Section):
    """Every combination of the listed values.

    Methods are names of ``RECIPES`` or registered ones, inits are registered distributions.
    """

    methods: tuple[Method, ...]
    inits: tuple[Init, ...]
    densities: tuple[Share, ...]
    seeds: tuple[Seed, ...]


class Study(Product):
    """A product beyond the preset's main runs.

    Args:
        name: The study's name for ``--studies`` and reports.
        lrs: Learning rates that replace the protocol's; empty for the protocol's.
        masks: Pairs of ``alpha`` and ``delta_t`` that replace the protocol's; empty for the
            protocol's.
        settings: Tables of arguments of the methods; empty for the defaults.
        flops_of: A distribution. Each run then has the density at which it costs as many FLOPs as
            this distribution costs at the listed density.
    """

    name: str
    lrs: tuple[Annotated[float, Field(gt=0.0)], ...] = ()
    masks: tuple[MaskSetting, ...] = ()
    settings: tuple[Settings, ...] = ()
    flops_of: Init | None = None

    @model_validator(mode="after")
    def _has_a_free_name_and_possible_settings(self) -> Study:
        if self.name in (MAIN, SEARCH, TIMING):
            raise ValueError(f"the name {self.name!r} is taken by a part of every preset")
        for method, settings in itertools.product(self.methods, self.settings):
            method_with(method, dict(settings))
        return self


class Search(Section):
    """A search for the ``alpha`` and ``delta_t`` with the best validation accuracy.

    There is one for each init and density.

    Args:
        method: The method whose masks are tuned.
        seeds: The seeds over which a trial takes the mean.
        trials: Trials of one search.
        alpha: The smallest and the largest value.
        delta_t: The smallest and the largest value, and the step between values.
    """

    method: Method
    inits: tuple[Init, ...]
    densities: tuple[Share, ...]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    trials: Count
    alpha: tuple[Share, Share]
    delta_t: tuple[Count, Count, Count]

    @model_validator(mode="after")
    def _goes_up(self) -> Search:
        if self.alpha[0] >= self.alpha[1] or self.delta_t[0] > self.delta_t[1]:
            raise ValueError(
                "alpha takes a smallest and a larger value, delta_t a smallest and a largest value "
                f"and a step, got {list(self.alpha)} and {list(self.delta_t)}"
            )
        return self

    @property
    def random_trials(self) -> int:
        """The number of random trials at the beginning: two thirds, as in the report."""
        return max(1, round(2 * self.trials / 3))


class Timing(Section):
    """Times of the networks of a study, measured after everything else.

    ``batches`` and ``rounds`` are for inference. Training steps take longer, so they have fewer
    rounds.
    """

    study: str
    batches: Annotated[tuple[Count, ...], Field(min_length=1)]
    rounds: Count
    training_rounds: Count


class Choices(Product):
    """What ``--all`` runs: the main runs, then the studies and the search, then the timing."""

    studies: tuple[Study, ...] = ()
    search: Search | None = None
    timing: Timing | None = None

    @model_validator(mode="after")
    def _times_a_study(self) -> Choices:
        names = [study.name for study in self.studies]
        if self.timing is not None and self.timing.study not in names:
            raise ValueError(f"timing.study takes one of {names}, got {self.timing.study!r}")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of everything that ``--studies`` can choose among."""
        search = () if self.search is None else (SEARCH,)
        timing = () if self.timing is None else (TIMING,)
        return (MAIN, *(study.name for study in self.studies), *search, *timing)


def expand(product: Product) -> list[RunSpec]:
    """Every run of the product, seed by seed, so that comparisons are complete early."""
    changes: list[dict[str, Any]] = [{}]
    if isinstance(product, Study):
        masks = [mask.model_dump() for mask in product.masks] or [{}]
        settings = [{"settings": pairs} for pairs in product.settings] or [{}]
        lrs = [{"lr": lr} for lr in product.lrs] or [{}]
        changes = [a | b | c for a, b, c in itertools.product(masks, settings, lrs)]
    every = itertools.product(
        product.seeds, product.densities, product.inits, product.methods, changes
    )
    runs = [
        RunSpec(method, *_named(method, init, density), seed, **change)
        for seed, density, init, method, change in every
    ]
    return list(dict.fromkeys(runs))


def _named(method: str, init: str, density: float) -> tuple[str | None, float | None]:
    if method == DENSE:
        return None, None
    return (None, density) if method == SMALL_DENSE else (init, density)
