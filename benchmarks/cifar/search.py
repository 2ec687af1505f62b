"""The search for ``alpha`` and ``delta_t``: the next trial, and the value of a trial."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import RunSpec, Search
from benchmarks.cifar.records import Folder, Record
from benchmarks.common.files import claimed, plain_name

# Trains the unfinished runs among its arguments, and returns the results of the finished ones.
Train = Callable[[Sequence[RunSpec]], Mapping[RunSpec, Record]]

SECONDS_BETWEEN_LOOKS = 5.0
# The attribute of a trial in the journal that holds its position in the search.
POSITION = "position"


class SearchError(Exception):
    """A trial without a result, because one of its runs failed."""


@dataclass(frozen=True)
class Tuning:
    """The search for one method at one init and density.

    ``data`` is the data set's fingerprint.
    """

    protocol: Protocol
    search: Search
    init: str
    density: float
    data: str

    @property
    def method(self) -> str:
        return f"{self.search.method}-{self.init}-{self.density:g}"

    @property
    def name(self) -> str:
        """The study's name, which changes with every setting except the number of trials."""
        search = {**self.search.model_dump(), "trials": 1}
        settings = {"protocol": self.protocol.settings(), "search": search, "data": self.data}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.protocol.name}-{self.method}-{digest}"

    def specs(self, alpha: float, delta_t: int) -> list[RunSpec]:
        """The runs of one trial."""
        spec = RunSpec(self.search.method, self.init, self.density, 0, alpha=alpha, delta_t=delta_t)
        return [
            dataclasses.replace(spec, seed=seed).without_defaults(self.protocol)
            for seed in self.search.seeds
        ]

    def run(self, folder: Folder, train: Train) -> None:
        """Continue the study until it has its number of trials.

        Random trials run together, because they do not depend on each other's results.

        Raises:
            SearchError: If a run failed. The search does the same trial again the next time.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = self._open(folder)
            while positions := self._ready(study):
                trials = [self._ask(study, position) for position in positions]
                specs = [self.specs(**trial.params) for trial in trials]
                records = train(list(itertools.chain.from_iterable(specs)))
                failed = []
                for trial, own in zip(trials, specs, strict=True):
                    lacking = [spec.label for spec in own if spec not in records]
                    if lacking:
                        study.tell(trial, state=TrialState.FAIL)
                        failed += lacking
                    else:
                        accuracies = (records[spec]["accuracy"]["validation"] for spec in own)
                        study.tell(trial, statistics.fmean(accuracies))
                if failed:
                    raise SearchError(f"a trial lacks the results of {', '.join(failed)}")
        best = study.best_trial
        self._say(f"best validation {best.value:.2%} with {_words(best.params)}")

    def _open(self, folder: Folder) -> optuna.Study:
        folder.search.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=self.name,
            storage=JournalStorage(JournalFileBackend(str(folder.search))),
            direction="maximize",
            load_if_exists=True,
        )
        # Unfinished trials of killed processes would count as bad trials. No process works on them,
        # because only the process with the claim gets here.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        return study

    def _ready(self, study: optuna.Study) -> list[int]:
        """The positions of the trials that can start now."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        done = {trial.user_attrs[POSITION] for trial in complete}
        left = [position for position in range(self.search.trials) if position not in done]
        at_random = [position for position in left if position < self.search.random_trials]
        return at_random or left[:1]

    def _ask(self, study: optuna.Study, position: int) -> optuna.Trial:
        # A trial is seeded by its position. So an interrupted trial is proposed again and finds its
        # finished runs, and the search equals an uninterrupted one.
        digest = hashlib.sha256(f"{self.name} {position}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        study.sampler = (
            RandomSampler(seed=seed)
            if position < self.search.random_trials
            else TPESampler(n_startup_trials=0, seed=seed)
        )
        trial = study.ask()
        trial.set_user_attr(POSITION, position)
        trial.suggest_float("alpha", *self.search.alpha)
        first, last, step = self.search.delta_t
        trial.suggest_int("delta_t", first, last, step=step)
        self._say(f"trial {position + 1} of {self.search.trials}, {_words(trial.params)}")
        return trial

    def _say(self, text: str) -> None:
        print(f"search of {self.method} ({self.protocol.label}): {text}")


def tunings(protocol: Protocol, data: str) -> list[Tuning]:
    """One for each init and density of the protocol's search."""
    search = protocol.choices.search
    if search is None:
        return []
    places = itertools.product(search.inits, search.densities)
    return [Tuning(protocol, search, init, density, data) for init, density in places]


def tune(searches: Sequence[Tuning], folder: Folder, train: Train) -> list[SearchError]:
    """Run all searches; first the searches on which no other process works.

    Returns:
        The errors that ended a search; the other searches are completed.
    """
    folder.search.parent.mkdir(parents=True, exist_ok=True)
    left, errors = list(searches), []
    while left:
        busy = []
        for tuning in left:
            with claimed(folder.search.with_name(f"{plain_name(tuning.name)}.lock")) as is_ours:
                if not is_ours:
                    busy.append(tuning)
                    continue
                try:
                    tuning.run(folder, train)
                except SearchError as error:
                    errors.append(error)
        if len(busy) == len(left):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        left = busy
    return errors


def _words(params: dict[str, float]) -> str:
    return f"alpha {params['alpha']:.3f}, delta_t {params['delta_t']}"
