"""What a preset runs: products of methods, distributions, densities and seeds, and a search."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from benchmarks.cifar.protocols.methods import METHODS
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.protocols.tables import (
    ProtocolError,
    check_count,
    check_name,
    check_positive,
    check_share,
)

INITS = ("erk", "uniform")
MAIN = "main"
SEARCH = "search"
TIMING = "timing"


@dataclass(frozen=True)
class MaskSetting:
    """A pair that takes the place of the protocol's own."""

    alpha: float
    delta_t: int

    def __post_init__(self) -> None:
        check_share("studies.masks.alpha", self.alpha, one=True)
        check_count("studies.masks.delta_t", self.delta_t)


@dataclass(frozen=True)
class Study:
    """Every combination of what is listed, beyond the preset's main runs.

    Args:
        name: What ``--studies`` and reports call it.
        methods: As in ``METHODS``.
        inits: As in ``INITS``.
        densities: Shares of live weights.
        seeds: One run of each combination for every seed.
        lrs: Learning rates in place of the protocol's; none leaves that.
        masks: Pairs of ``alpha`` and ``delta_t`` in place of the protocol's; none leaves those.
        flops_of: A distribution. The runs then have the densities at which they cost as many
            FLOPs as that distribution does at those listed.
    """

    name: str
    methods: tuple[str, ...]
    inits: tuple[str, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] = ()
    masks: tuple[MaskSetting, ...] = ()
    flops_of: str | None = None

    def __post_init__(self) -> None:
        _check("studies", self.methods, self.inits, self.densities, self.seeds)
        for lr in self.lrs:
            check_positive("each of studies.lrs", lr)
        if self.flops_of is not None:
            check_name("studies.flops_of", self.flops_of, INITS)
        if self.name in (MAIN, SEARCH, TIMING):
            raise ProtocolError(f"studies.name {self.name!r} is taken by a part of every preset")


@dataclass(frozen=True)
class Search:
    """A search for the ``alpha`` and ``delta_t`` with the best validation accuracy.

    Args:
        method: The method whose masks are tuned.
        inits: One search for each of these...
        densities: ... at each of these.
        seeds: A trial is the mean over these.
        trials: Trials of one search.
        alpha: Smallest and largest.
        delta_t: Smallest, largest and the step between.
    """

    method: str
    inits: tuple[str, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    trials: int
    alpha: tuple[float, ...]
    delta_t: tuple[int, ...]

    def __post_init__(self) -> None:
        _check("search", (self.method,), self.inits, self.densities, self.seeds)
        if not self.seeds:
            raise ProtocolError("search.seeds takes at least one seed, got none")
        if len(self.alpha) != 2 or not 0.0 < self.alpha[0] < self.alpha[1] <= 1.0:
            raise ProtocolError(
                f"search.alpha takes a smallest and a largest in (0, 1], got {list(self.alpha)}"
            )
        if len(self.delta_t) != 3 or (
            not 0 < self.delta_t[0] <= self.delta_t[1] or self.delta_t[2] < 1
        ):
            raise ProtocolError(
                "search.delta_t takes a smallest, a largest and a step, all at least 1, "
                f"got {list(self.delta_t)}"
            )
        check_count("search.trials", self.trials)

    @property
    def random_trials(self) -> int:
        """How many of the trials come first, at random: two thirds, as of the report's fifteen."""
        return max(1, round(2 * self.trials / 3))

    @property
    def examples(self) -> list[RunSpec]:
        """One run for each that all trials together make at most."""
        middle = sum(self.delta_t[:2]) // 2
        each = itertools.product(range(self.trials), self.seeds, self.inits, self.densities)
        return [
            RunSpec(self.method, init, density, seed, alpha=sum(self.alpha) / 2, delta_t=middle)
            for _, seed, init, density in each
        ]


@dataclass(frozen=True)
class Timing:
    """Times of the networks of a study, measured when everything else is done.

    Args:
        study: The study's name; those of its runs that are finished are timed.
        batches: Batch sizes of inference.
        rounds: Measurements of inference.
        training_rounds: Measurements of training steps, which take longer.
    """

    study: str
    batches: tuple[int, ...]
    rounds: int
    training_rounds: int

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ProtocolError(f"timing.batches takes sizes from 1 on, got {list(self.batches)}")
        for name in ("rounds", "training_rounds"):
            check_count(f"timing.{name}", getattr(self, name))


@dataclass(frozen=True)
class Choices:
    """What ``--all`` runs: the main runs, then the studies and the search, then the timing."""

    methods: tuple[str, ...]
    inits: tuple[str, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    studies: tuple[Study, ...] = ()
    search: Search | None = None
    timing: Timing | None = None

    def __post_init__(self) -> None:
        _check("choices", self.methods, self.inits, self.densities, self.seeds)
        if self.timing is not None:
            check_name("timing.study", self.timing.study, tuple(s.name for s in self.studies))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of everything that ``--studies`` can choose among."""
        search = () if self.search is None else (SEARCH,)
        timing = () if self.timing is None else (TIMING,)
        return (MAIN, *(study.name for study in self.studies), *search, *timing)


def expand(choices: Choices | Study) -> list[RunSpec]:
    """Every run of the product, seed by seed, so that comparisons are complete early."""
    lrs: tuple[float | None, ...] = (None,)
    masks: tuple[MaskSetting | None, ...] = (None,)
    if isinstance(choices, Study):
        lrs = choices.lrs or lrs
        masks = choices.masks or masks
    runs: dict[RunSpec, None] = {}
    for seed, density, init, method, mask, lr in itertools.product(
        choices.seeds, choices.densities, choices.inits, choices.methods, masks, lrs
    ):
        alpha, delta_t = (None, None) if mask is None else (mask.alpha, mask.delta_t)
        named = _named(method, init, density)
        runs[RunSpec(method, *named, seed, alpha=alpha, delta_t=delta_t, lr=lr)] = None
    return list(runs)


def _named(method: str, init: str, density: float) -> tuple[str | None, float | None]:
    if method == "dense":
        return None, None
    return (None, density) if method == "small-dense" else (init, density)


def _check(
    section: str,
    methods: tuple[str, ...],
    inits: tuple[str, ...],
    densities: tuple[float, ...],
    seeds: tuple[int, ...],
) -> None:
    for method in methods:
        check_name(f"{section}.methods", method, METHODS)
    for init in inits:
        check_name(f"{section}.inits", init, INITS)
    for density in densities:
        check_share(f"each of {section}.densities", density, one=True)
    for seed in seeds:
        check_count(f"each of {section}.seeds", seed, 0)
