"""A session: the chosen parts of a preset, planned, run and written down."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.cifar.models.networks import SCALE, SMALL_DENSE, comes_in_widths
from benchmarks.cifar.protocols.choices import MAIN, SEARCH, TIMING, expand
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.records.results import Record, read_results
from benchmarks.cifar.running.matching import matched_density
from benchmarks.cifar.running.ranks import ALONE, Ranks
from benchmarks.cifar.running.stopping import Stop
from benchmarks.cifar.scheduling.cluster import run_on_cluster
from benchmarks.cifar.scheduling.display import Display
from benchmarks.cifar.scheduling.durations import Forecast, Later, format_duration
from benchmarks.cifar.scheduling.jobs import Agenda, Job, with_sources
from benchmarks.cifar.scheduling.planning import Estimate, Estimator, Total, format_bytes
from benchmarks.cifar.scheduling.pool import run_in_pool
from benchmarks.cifar.scheduling.serial import run_serially
from benchmarks.cifar.scheduling.worker import Setup, Worker


@dataclass(frozen=True)
class Chosen:
    """A protocol, the parts of it that are to be done, and the data for it.

    Args:
        protocol: Its ``choices`` are those of this session.
        parts: Names of the parts, as in ``Choices.parts``.
        data: The data set's fingerprint; empty where there is no data yet.
        classes: Of its images.
    """

    protocol: Protocol
    parts: tuple[str, ...]
    data: str
    classes: int

    def jobs(self) -> list[Job]:
        """All runs but those of the search."""
        specs = []
        choices = self.protocol.choices
        if MAIN in self.parts:
            specs += expand(choices)
        for study in choices.studies:
            if study.name in self.parts:
                specs += self._matched(expand(study), study.flops_of)
        return with_sources(self._jobs(specs))

    def timing_jobs(self) -> list[Job]:
        """The runs whose networks are to be timed."""
        timing = self.protocol.choices.timing
        if TIMING not in self.parts or timing is None:
            return []
        studies = [s for s in self.protocol.choices.studies if s.name == timing.study]
        return self._jobs(spec for s in studies for spec in self._matched(expand(s), s.flops_of))

    def search_jobs(self) -> list[Job]:
        """A job for each that the search makes at most, of the kind that it makes."""
        search = self.protocol.choices.search
        if SEARCH not in self.parts or search is None:
            return []
        return [self.job(spec) for spec in search.examples]

    def searches(self, records: Sequence[Record], others: Iterable[str]) -> list[SearchLeft]:
        """What is left of each search.

        Args:
            records: All results.
            others: Keys of runs that are not the search's.
        """
        search = self.protocol.choices.search
        every: dict[tuple[Protocol, str | None, float | None], list[Job]] = {}
        for job in self.search_jobs():
            every.setdefault(self.search_name(job.spec), []).append(job)
        if search is None or not every:
            return []
        done = dict.fromkeys(every, 0)
        for record in records:
            spec, key = RunSpec(**record["run"]), record["key"]
            name = self.search_name(spec)
            if spec.method != search.method or name not in done or key in others:
                continue
            if spec.lr is None and spec.seed in search.seeds and self.job(spec).key == key:
                done[name] += 1
        return [
            SearchLeft(
                name,
                jobs[0],
                len(jobs) - done[name],
                max(0, search.random_trials * len(search.seeds) - done[name]),
                len(search.seeds),
            )
            for name, jobs in every.items()
            if len(jobs) > done[name]
        ]

    def search_name(self, spec: RunSpec) -> tuple[Protocol, str | None, float | None]:
        """To which search a trial's run belongs."""
        return self.protocol, spec.init, spec.density

    def job(self, spec: RunSpec) -> Job:
        return Job(self.protocol, spec.without_defaults(self.protocol), self.data)

    def _jobs(self, specs: Iterable[RunSpec]) -> list[Job]:
        return [self.job(spec) for spec in specs if self._is_possible(spec)]

    def _matched(self, specs: list[RunSpec], flops_of: str | None) -> list[RunSpec]:
        if flops_of is None:
            return specs
        matched = []
        for spec in specs:
            if spec.init is not None and spec.density is not None:
                density = matched_density(
                    self.protocol, spec.init, flops_of, spec.density, self.classes
                )
                matched.append(dataclasses.replace(spec, density=density))
        return matched

    @property
    def leaves_out_small_dense(self) -> bool:
        """Whether the user's network comes in one size only."""
        return not comes_in_widths(self.protocol)

    def _is_possible(self, spec: RunSpec) -> bool:
        return spec.method != SMALL_DENSE or not self.leaves_out_small_dense


@dataclass(frozen=True)
class SearchLeft:
    """One search, at one init and density, and what it still has to do at most.

    Args:
        name: By which a trial's runs belong to it.
        example: A run of the kind that it makes.
        jobs: How many at most.
        at_random: How many of them wait for no result of another.
        seeds: How many of them make a trial.
    """

    name: tuple[Protocol, str | None, float | None]
    example: Job
    jobs: int
    at_random: int
    seeds: int


@dataclass(frozen=True)
class Means:
    """What a session runs on.

    Args:
        setup: What every process has to know.
        workers: Processes of this machine.
        threads: CPU threads of this machine that all of them may use together.
        cluster: Address of a Ray cluster, in place of them.
        ranks: The processes that train each job together.
    """

    setup: Setup
    workers: int = 1
    threads: int = 1
    cluster: str | None = None
    ranks: Ranks = ALONE


class Plan:
    """What is to be done, and about how long it takes.

    Args:
        chosen: The protocols and their parts.
        means: What they run on.
    """

    def __init__(self, chosen: Sequence[Chosen], means: Means) -> None:
        self.chosen = chosen
        self.means = means
        self.jobs = [job for part in chosen for job in part.jobs()]
        self.agenda = Agenda(self.jobs, means.setup.folder)
        self.estimates: dict[str, Estimate] = {}
        others = {job.key for job in self.agenda.jobs}
        with warnings.catch_warnings():
            # A last line that a crash cut short goes when the next is written.
            warnings.simplefilter("ignore", UserWarning)
            records = read_results(means.setup.folder.results)
        self.searches = [search for part in chosen for search in part.searches(records, others)]
        self.trials: list[Estimate] = []

    def measure(self, estimator: Estimator) -> None:
        """Estimate what is left."""
        # Other sessions may finish something meanwhile, but all processes have to measure the same.
        left = self.means.ranks.from_first(self.agenda.left)
        self.estimates = {job.key: estimator.estimate(job) for job in left}
        # Of a run of each search. No search is for torchrun, whose processes measure together.
        self.trials = [estimator.estimate(search.example) for search in self.searches]

    def show(self, say: Callable[[str], None]) -> None:
        """Print what there is to do."""
        for part in self.chosen:
            say(f"{part.protocol.label}: {part.protocol.describe()}")
            if part.leaves_out_small_dense:
                say(f"  {SMALL_DENSE} is left out: {part.protocol.model.kind} takes no {SCALE!r}")
        done = len(self.agenda.jobs) - len(self.agenda.left)
        say(f"{len(self.agenda.jobs)} runs, {done} of them finished, {len(self.agenda.left)} to do")
        timed = len(self.timing_jobs())
        if timed:
            say(f"then the times of {timed} networks, as far as they are not known")

    def timing_jobs(self) -> list[Job]:
        """The runs whose networks are to be timed when all else is done."""
        return [job for part in self.chosen for job in part.timing_jobs()]

    def show_estimates(self, say: Callable[[str], None]) -> None:
        """Print what the runs of every variant take, and all together."""
        for name, jobs in self._by_variant().items():
            estimates = [self.estimates[job.key] for job in jobs]
            total = Total.of(estimates, workers=1)
            begun = sum(self.means.setup.folder.checkpoint(job.key).exists() for job in jobs)
            note = f", {begun} begun, will resume" if begun else ""
            say(
                f"  {name:<40} {total.jobs:>3} x {estimates[0].steps:>8,} steps, "
                f"about {format_duration(total.seconds)}{note}"
            )
        searches = [
            Total.one_after_other(
                [
                    Total.of([trial] * search.at_random, self.means.workers),
                    Total.of([trial] * (search.jobs - search.at_random), self._at_a_time(search)),
                ]
            )
            for search, trial in zip(self.searches, self.trials, strict=True)
        ]
        if searches:
            total = Total.one_after_other(searches)
            say(
                f"  searches for alpha and delta_t: at most {total.jobs:,} runs, "
                f"{total.steps:,} steps, about {format_duration(total.seconds)}"
            )
        runs = Total.of(self.estimates.values(), self.means.workers)
        total = Total.one_after_other([runs, *searches])
        workers = f" by {self.means.workers} workers" if self.means.workers > 1 else ""
        say(
            f"together {total.jobs:,} runs, {total.steps:,} steps, about "
            f"{format_duration(total.seconds)}{workers}, writing about {format_bytes(total.bytes)}"
        )

    def _by_variant(self) -> dict[str, list[Job]]:
        """Jobs that differ in the seed only, together."""
        several = len(self.chosen) > 1
        groups: dict[str, list[Job]] = {}
        for job in self.agenda.left:
            if job.key not in self.estimates:
                continue
            name = job.spec.variant
            groups.setdefault(f"{job.protocol.name}: {name}" if several else name, []).append(job)
        return groups

    def forecast(self) -> Forecast:
        """What the display counts down."""
        seconds = {key: estimate.seconds for key, estimate in self.estimates.items()}
        later: dict[Hashable, Later] = {
            search.name: Later(
                search.jobs, trial.seconds, search.at_random, self._at_a_time(search)
            )
            for search, trial in zip(self.searches, self.trials, strict=True)
        }
        return Forecast(seconds, self.means.workers, later)

    def _at_a_time(self, search: SearchLeft) -> int:
        # Of the trials that are not drawn at random, each waits for the results of the last one.
        return min(self.means.workers, search.seeds)


class Session:
    """Runs jobs by the means there are.

    Args:
        means: What jobs run on.
        stop: Looked at all the time.
    """

    def __init__(self, means: Means, stop: Stop) -> None:
        self.means = means
        self.stop = stop
        self.failed: list[Job] = []
        self._worker: Worker | None = None

    def run(self, agenda: Agenda, forecast: Forecast) -> None:
        """Do everything on an agenda, and note what failed.

        Raises:
            StoppedError: If a stop was requested. The state is saved then.
        """
        display = Display(forecast, len(agenda.left))
        setup, stop = self.means.setup, self.stop
        if self.means.cluster is not None:
            run_on_cluster(setup, self.means.cluster, agenda, display, stop)
        elif self.means.workers > 1 and len(agenda.left) > 1:
            run_in_pool(setup, self.means.workers, agenda, display, stop)
        else:
            run_serially(self._own_worker(), agenda, display, stop)
        self.failed += agenda.failed

    def train(
        self, part: Chosen, forecast: Forecast, specs: Sequence[RunSpec]
    ) -> dict[RunSpec, Record]:
        """Run what isn't finished of a search's runs; return the results of those that are."""
        jobs = {spec: part.job(spec) for spec in specs}
        agenda = Agenda(list(jobs.values()), self.means.setup.folder)
        forecast.begin_trials(part.search_name(specs[0]), list(jobs.values()), agenda.left)
        self.run(agenda, forecast)
        records = {
            record["key"]: record for record in read_results(self.means.setup.folder.results)
        }
        return {spec: records[job.key] for spec, job in jobs.items() if job.key in records}

    def _own_worker(self) -> Worker:
        # One for all agendas, so that the images are read once.
        if self._worker is None:
            self._worker = Worker(self.means.setup, self.means.ranks)
        return self._worker
