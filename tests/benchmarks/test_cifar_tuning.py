import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import optuna
import pytest

from benchmarks.cifar.config import load_preset
from benchmarks.cifar.grid import Search
from benchmarks.cifar.records import Folder
from benchmarks.cifar.search import SearchError, Tuning, tune, tunings
from benchmarks.common.files import claimed

ROOT = Path(__file__).parents[2]
SEARCH = Search(
    method="rigl",
    inits=("erk",),
    densities=(0.1,),
    seeds=(0, 1),
    trials=6,
    alpha=(0.1, 0.6),
    delta_t=(50, 1000, 50),
)


def changed(**update):
    return SEARCH.model_copy(update=update)


# The killed process: the same search, which ends after five runs, within the third trial.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.cifar.config import load_preset
from benchmarks.cifar.records import Folder
from benchmarks.cifar.search import Tuning
from tests.benchmarks.test_cifar_tuning import SEARCH, Runs

class Fatal(Runs):
    def __call__(self, specs):
        if len(self.trained) + len(specs) > 5:
            super().__call__(specs[:5 - len(self.trained)])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(specs)

preset, log, folder = sys.argv[1:]
tuning = Tuning(load_preset(preset), SEARCH, "erk", 0.1, "data")
tuning.run(Folder(Path(folder)), Fatal(Path(log)))
"""


class Runs:
    """Replaces the training: an accuracy that depends on the settings; each run is done once.

    Args:
        log: A file with the labels of the runs that are done; it replaces the results file.
    """

    def __init__(self, log):
        self.log = log
        self.trained = log.read_text().splitlines() if log.exists() else []

    def __call__(self, specs):
        for spec in specs:
            if spec.label not in self.trained:
                self.trained.append(spec.label)
                with self.log.open("a") as file:
                    file.write(spec.label + "\n")
        return {spec: {"accuracy": {"validation": self.accuracy(spec)}} for spec in specs}

    @staticmethod
    def accuracy(spec):
        return 0.9 - (spec.alpha - 0.4) ** 2 - (spec.delta_t / 1000 - 0.2) ** 2 - 0.01 * spec.seed


@pytest.fixture
def tuning(tiny_preset):
    return Tuning(load_preset(str(tiny_preset)), SEARCH, "erk", 0.1, "data")


def complete(tuning, folder):
    """The complete trials, read as Optuna's own tools read them."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder.search))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name=tuning.name, storage=storage)
    return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def kill_in_the_third_trial(tiny_preset, log, folder):
    command = [sys.executable, "-c", KILLED, str(tiny_preset), str(log), str(folder)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(log.read_text().splitlines()) == 5


def test_search_does_its_trials_within_the_ranges(tuning, tmp_path):
    runs = Runs(tmp_path / "log")
    store = Folder(tmp_path)
    tuning.run(store, runs)
    trials = complete(tuning, store)
    assert len(trials) == SEARCH.trials
    assert len(runs.trained) == len(SEARCH.seeds) * SEARCH.trials
    for trial in trials:
        assert 0.1 <= trial.params["alpha"] <= 0.6
        assert trial.params["delta_t"] in range(50, 1001, 50)


def test_trial_is_worth_the_mean_validation_accuracy_over_the_seeds(tuning, tmp_path):
    store = Folder(tmp_path)
    tuning.run(store, Runs(tmp_path / "log"))
    for trial in complete(tuning, store):
        specs = tuning.specs(trial.params["alpha"], trial.params["delta_t"])
        assert [spec.seed for spec in specs] == [0, 1]
        expected = (Runs.accuracy(specs[0]) + Runs.accuracy(specs[1])) / 2
        assert trial.value == pytest.approx(expected, abs=1e-12)


def test_finished_search_trains_nothing_and_a_longer_one_goes_on(tuning, tmp_path):
    store = Folder(tmp_path)
    tuning.run(store, Runs(tmp_path / "log"))
    before = (tmp_path / "log").read_text()
    tuning.run(store, Runs(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == before
    longer = Tuning(
        tuning.protocol,
        changed(trials=8),
        "erk",
        0.1,
        "data",
    )
    longer.run(store, Runs(tmp_path / "log"))
    assert len(complete(longer, store)) == 8
    assert (tmp_path / "log").read_text().startswith(before)


def test_search_that_was_killed_proposes_the_same_trials_and_trains_nothing_twice(
    tuning, tiny_preset, tmp_path
):
    whole, broken = tmp_path / "whole.log", tmp_path / "broken.log"
    tuning.run(Folder(tmp_path / "whole"), Runs(whole))
    kill_in_the_third_trial(tiny_preset, broken, tmp_path / "broken")
    tuning.run(Folder(tmp_path / "broken"), Runs(broken))
    assert broken.read_text() == whole.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("done", [0, 8, 10])
def test_search_that_was_interrupted_proposes_the_same_trials(tuning, tmp_path, error, done):
    whole, broken = tmp_path / "whole.log", tmp_path / "broken.log"
    tuning.run(Folder(tmp_path / "whole"), Runs(whole))

    def interrupted(specs):
        runs = Runs(broken)
        if len(runs.trained) == done:
            runs(specs[1:])
            raise error
        return runs(specs)

    with pytest.raises(error):
        tuning.run(Folder(tmp_path / "broken"), interrupted)
    tuning.run(Folder(tmp_path / "broken"), Runs(broken))
    assert sorted(broken.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_trial_whose_run_failed_is_named_and_the_other_searches_go_on(tiny_preset, tmp_path):
    protocol = load_preset(str(tiny_preset))
    search = changed(inits=("erk", "uniform"), trials=2)
    choices = protocol.choices.model_copy(update={"search": search})
    searches = tunings(protocol.model_copy(update={"choices": choices}), "data")
    runs = Runs(tmp_path / "log")

    def train(specs):
        records = runs(specs)
        return {spec: records[spec] for spec in specs if (spec.init, spec.seed) != ("erk", 1)}

    (error,) = tune(searches, Folder(tmp_path), train)
    assert isinstance(error, SearchError)
    assert "a trial lacks the results of rigl-erk-0.1-alpha" in str(error)
    assert sum("rigl-uniform" in label for label in runs.trained) == 4
    assert tune(searches, Folder(tmp_path), runs) == []
    assert len(runs.trained) == 8


def test_random_trials_are_trained_together_and_the_others_in_turn(tuning, tmp_path):
    runs, calls = Runs(tmp_path / "log"), []

    def train(specs):
        calls.append(len(specs))
        return runs(specs)

    store = Folder(tmp_path)
    tuning.run(store, train)
    # Two thirds of six trials, of two runs each.
    assert calls == [8, 2, 2]
    trials = complete(tuning, store)
    assert len({(trial.params["alpha"], trial.params["delta_t"]) for trial in trials}) == 6


def test_random_trial_that_failed_is_done_again_and_the_others_are_kept(tuning, tmp_path):
    whole = Runs(tmp_path / "whole.log")
    tuning.run(Folder(tmp_path / "whole"), whole)
    second = whole.trained[2:4]
    runs, store = Runs(tmp_path / "log"), Folder(tmp_path / "broken")

    def failing(specs):
        return runs([spec for spec in specs if spec.label not in second])

    with pytest.raises(SearchError, match=second[0]):
        tuning.run(store, failing)
    assert len(complete(tuning, store)) == 3
    tuning.run(store, runs)
    assert sorted(runs.trained) == sorted(whole.trained)
    assert len(complete(tuning, store)) == SEARCH.trials


def test_other_protocol_data_or_range_is_another_search(tuning):
    others = [
        Tuning(tuning.protocol, SEARCH, "erk", 0.1, "other data"),
        Tuning(tuning.protocol, SEARCH, "uniform", 0.1, "data"),
        Tuning(tuning.protocol, SEARCH, "erk", 0.2, "data"),
        Tuning(tuning.protocol, changed(alpha=(0.1, 0.5)), "erk", 0.1, "data"),
    ]
    assert len({tuning.name, *(other.name for other in others)}) == 5


def test_search_of_another_process_is_waited_for(tuning, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.cifar.search.SECONDS_BETWEEN_LOOKS", 0.1)
    lock = tmp_path / "search" / f"{tuning.name}.lock"
    lock.parent.mkdir()
    runs = Runs(tmp_path / "log")
    with claimed(lock) as is_ours:
        assert is_ours
        thread = threading.Thread(target=tune, args=([tuning], Folder(tmp_path), runs))
        thread.start()
        thread.join(0.5)
        assert runs.trained == []
    thread.join()
    assert len(runs.trained) == len(SEARCH.seeds) * SEARCH.trials


def test_trials_of_the_committed_search_are_still_proposed():
    """The names of studies seed the trials, so that earlier results are found again."""
    (tuning,) = tunings(load_preset("cpu"), "c6623c884348")
    assert tuning.name == "cpu-rigl-erk-0.1-33117668ea79"
