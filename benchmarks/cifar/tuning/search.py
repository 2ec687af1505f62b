"""The search itself: which trial is next, and what it is worth."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import fail_stale_trials
from optuna.trial import TrialState

from benchmarks.cifar.protocols.choices import Search
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.records.results import Record
from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.tuning.storage import Storage, quiet

# Runs what isn't finished yet of the runs that it gets, and returns the results of those that are.
Train = Callable[[Sequence[RunSpec]], Mapping[RunSpec, Record]]

Say = Callable[[str], object]

SECONDS_BETWEEN_LOOKS = 5.0
# Under this name a trial in a file knows which one of the search's it is.
POSITION = "position"


class SearchError(Exception):
    """A trial without a result, because one of its runs failed."""


@dataclass(frozen=True)
class Tuning:
    """The search for one method at one init and density.

    Args:
        protocol: What all runs share.
        search: Ranges, seeds and number of trials.
        init: The distribution.
        density: Share of live weights.
        data: The data set's fingerprint.
    """

    protocol: Protocol
    search: Search
    init: str
    density: float
    data: str

    @property
    def name(self) -> str:
        """The study's name, which changes with everything but the number of trials."""
        settings = {
            "protocol": self.protocol.settings(),
            "search": dataclasses.asdict(dataclasses.replace(self.search, trials=1)),
            "data": self.data,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        method = f"{self.search.method}-{self.init}-{self.density:g}"
        return f"{self.protocol.name}-{method}-{digest}"

    def specs(self, alpha: float, delta_t: int) -> list[RunSpec]:
        """The runs of one trial."""
        spec = RunSpec(self.search.method, self.init, self.density, 0, alpha=alpha, delta_t=delta_t)
        return [
            dataclasses.replace(spec, seed=seed).without_defaults(self.protocol)
            for seed in self.search.seeds
        ]

    @property
    def title(self) -> str:
        return (
            f"search of {self.search.method}-{self.init}-{self.density:g} ({self.protocol.label})"
        )

    def run(self, storage: Storage, train: Train, say: Say = print) -> None:
        """Go on with the study until it has its trials.

        Args:
            storage: Where the study is.
            train: Trains the runs of a trial.
            say: Told of every trial.

        Raises:
            SearchError: If a run failed. The search does the same trial again the next time.
        """
        study = storage.open(self.name)
        with quiet():
            if storage.is_shared:
                self._share(study, train, say)
            else:
                self._finish(study, train, say)
        # In a database all trials may be in the hands of other machines.
        if _count(study, TrialState.COMPLETE):
            best = study.best_trial
            say(f"{self.title}: best validation {best.value:.2%} with {_words(best.params)}")

    def _finish(self, study: optuna.Study, train: Train, say: Say) -> None:
        """All trials: those at random together, because none of them waits for another's result."""
        while positions := self._ready(study):
            trials = [self._ask(study, position, say) for position in positions]
            specs = [self._specs(trial) for trial in trials]
            records = train([spec for trial_specs in specs for spec in trial_specs])
            failed = []
            for trial, trial_specs in zip(trials, specs, strict=True):
                try:
                    study.tell(trial, self._value(trial_specs, records))
                except SearchError as error:
                    study.tell(trial, state=TrialState.FAIL)
                    failed.append(error)
            if failed:
                raise failed[0]

    def _ready(self, study: optuna.Study) -> list[int]:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        done = {trial.user_attrs.get(POSITION) for trial in trials}
        left = [position for position in range(self.search.trials) if position not in done]
        at_random = [position for position in left if position < self.search.random_trials]
        return at_random or left[:1]

    def _ask(self, study: optuna.Study, position: int, say: Say) -> optuna.Trial:
        # Seeded by its position, a trial that was interrupted is proposed again, and finds what it
        # had trained: the search takes the same way as an undisturbed one.
        digest = hashlib.sha256(f"{self.name} {position}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        study.sampler = (
            RandomSampler(seed=seed)
            if position < self.search.random_trials
            else TPESampler(n_startup_trials=0, seed=seed)
        )
        trial = study.ask()
        trial.set_user_attr(POSITION, position)
        self._propose(trial, position + 1, say)
        return trial

    def _share(self, study: optuna.Study, train: Train, say: Say) -> None:
        """What other machines leave of the trials, one at a time."""
        # Machines that ask at the same time are to get different answers.
        study.sampler = TPESampler(n_startup_trials=self.search.random_trials, constant_liar=True)

        def objective(trial: optuna.Trial) -> float:
            self._propose(trial, _count(study, TrialState.COMPLETE) + 1, say)
            specs = self._specs(trial)
            return self._value(specs, train(specs))

        while self._wants_more(study):
            study.optimize(objective, n_trials=1)

    def _wants_more(self, study: optuna.Study) -> bool:
        # Retries of trials that died with their machine.
        fail_stale_trials(study)
        if _count(study, TrialState.WAITING):
            return True
        return _count(study, TrialState.COMPLETE, TrialState.RUNNING) < self.search.trials

    def _propose(self, trial: optuna.Trial, number: int, say: Say) -> None:
        low, high = self.search.alpha
        trial.suggest_float("alpha", low, high)
        first, last, step = self.search.delta_t
        trial.suggest_int("delta_t", first, last, step=step)
        say(f"{self.title}: trial {number} of {self.search.trials}, {_words(trial.params)}")

    def _specs(self, trial: optuna.Trial) -> list[RunSpec]:
        return self.specs(trial.params["alpha"], trial.params["delta_t"])

    def _value(self, specs: Sequence[RunSpec], records: Mapping[RunSpec, Record]) -> float:
        finished = [records[spec] for spec in specs if spec in records]
        if len(finished) < len(specs):
            names = ", ".join(spec.label for spec in specs)
            raise SearchError(f"only {len(finished)} of the runs of a trial succeeded: {names}")
        return statistics.fmean(record["accuracy"]["validation"] for record in finished)


def tunings(protocol: Protocol, search: Search, data: str) -> list[Tuning]:
    """One for each init and density of the search."""
    return [
        Tuning(protocol, search, init, density, data)
        for init, density in itertools.product(search.inits, search.densities)
    ]


def tune(
    protocol: Protocol,
    search: Search,
    data: str,
    storage: Storage,
    train: Train,
    stop: Stop,
    say: Say = print,
) -> list[SearchError]:
    """Do all searches of a preset, those first that no other process is at.

    Args:
        protocol: What all runs share.
        search: What to search, and how.
        data: The data set's fingerprint.
        storage: Where the studies are.
        train: Trains the runs of a trial.
        stop: Looked at between searches, and while other processes are at all that are left.
        say: Told of every trial.

    Returns:
        The errors that ended a search; the other searches are done all the same.

    Raises:
        StoppedError: If a stop was requested.
    """
    left = tunings(protocol, search, data)
    errors = []
    while left:
        busy = []
        for tuning in left:
            if stop.requested:
                raise StoppedError
            with storage.claim(tuning.name) as is_ours:
                if not is_ours:
                    busy.append(tuning)
                    continue
                try:
                    tuning.run(storage, train, say)
                except SearchError as error:
                    errors.append(error)
        if len(busy) == len(left) and stop.wait(SECONDS_BETWEEN_LOOKS):
            raise StoppedError
        left = busy
    return errors


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _words(params: dict[str, float]) -> str:
    return f"alpha {params['alpha']:.3f}, delta_t {params['delta_t']}"
