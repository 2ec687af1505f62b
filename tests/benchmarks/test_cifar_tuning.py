import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from benchmarks.cifar.protocols.choices import Search
from benchmarks.cifar.protocols.presets import Change, load_preset
from benchmarks.cifar.protocols.tables import ProtocolError
from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.tuning import SearchError, Storage, Tuning, storage, tune

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

# What a killed process runs: the same search, which ends after five runs, within the third trial.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks.cifar.protocols.presets import load_preset
from benchmarks.cifar.tuning import Storage, Tuning, storage
from tests.benchmarks.test_cifar_tuning import SEARCH, Runs

class Fatal(Runs):
    def __call__(self, specs):
        if len(self.trained) + len(specs) > 5:
            super().__call__(specs[:5 - len(self.trained)])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(specs)

storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 8
preset, log, folder, url = sys.argv[1:]
tuning = Tuning(load_preset(preset), SEARCH, "erk", 0.1, "data")
tuning.run(Storage(Path(folder), url or None), Fatal(Path(log)))
"""


class Runs:
    """Stands for the training: an accuracy that depends on the settings, and each run done once.

    Args:
        log: The results file, as far as a search needs it.
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


def complete(study):
    return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def kill_in_the_third_trial(tiny_preset, log, folder, url=""):
    command = [sys.executable, "-c", KILLED, str(tiny_preset), str(log), str(folder), url]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(log.read_text().splitlines()) == 5


def test_search_does_its_trials_within_the_ranges(tuning, tmp_path):
    runs = Runs(tmp_path / "log")
    store = Storage(tmp_path)
    tuning.run(store, runs)
    trials = complete(store.open(tuning.name))
    assert len(trials) == SEARCH.trials
    assert len(runs.trained) == len(SEARCH.seeds) * SEARCH.trials
    for trial in trials:
        assert 0.1 <= trial.params["alpha"] <= 0.6
        assert trial.params["delta_t"] in range(50, 1001, 50)


def test_trial_is_worth_the_mean_validation_accuracy_over_the_seeds(tuning, tmp_path):
    store = Storage(tmp_path)
    tuning.run(store, Runs(tmp_path / "log"))
    for trial in complete(store.open(tuning.name)):
        specs = tuning.specs(trial.params["alpha"], trial.params["delta_t"])
        assert [spec.seed for spec in specs] == [0, 1]
        expected = (Runs.accuracy(specs[0]) + Runs.accuracy(specs[1])) / 2
        assert trial.value == pytest.approx(expected, abs=1e-12)


def test_finished_search_trains_nothing_more_and_a_longer_one_goes_on(tuning, tmp_path):
    store = Storage(tmp_path)
    tuning.run(store, Runs(tmp_path / "log"))
    before = (tmp_path / "log").read_text()
    tuning.run(store, Runs(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == before
    longer = Tuning(
        tuning.protocol,
        dataclasses.replace(SEARCH, trials=8),
        "erk",
        0.1,
        "data",
    )
    longer.run(store, Runs(tmp_path / "log"))
    assert len(complete(store.open(longer.name))) == 8
    assert (tmp_path / "log").read_text().startswith(before)


def test_search_that_was_killed_takes_the_same_way_and_trains_nothing_twice(
    tuning, tiny_preset, tmp_path
):
    whole, broken = tmp_path / "whole.log", tmp_path / "broken.log"
    tuning.run(Storage(tmp_path / "whole"), Runs(whole))
    kill_in_the_third_trial(tiny_preset, broken, tmp_path / "broken")
    tuning.run(Storage(tmp_path / "broken"), Runs(broken))
    assert broken.read_text() == whole.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("done", [0, 8, 10])
def test_search_that_was_interrupted_takes_the_same_way(tuning, tmp_path, error, done):
    whole, broken = tmp_path / "whole.log", tmp_path / "broken.log"
    tuning.run(Storage(tmp_path / "whole"), Runs(whole))

    def interrupted(specs):
        runs = Runs(broken)
        if len(runs.trained) == done:
            runs(specs[1:])
            raise error
        return runs(specs)

    with pytest.raises(error):
        tuning.run(Storage(tmp_path / "broken"), interrupted)
    tuning.run(Storage(tmp_path / "broken"), Runs(broken))
    assert sorted(broken.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_trial_whose_run_failed_is_named_and_the_other_searches_go_on(tiny_preset, tmp_path):
    protocol = load_preset(str(tiny_preset))
    search = dataclasses.replace(SEARCH, inits=("erk", "uniform"), trials=2)
    runs = Runs(tmp_path / "log")

    def train(specs):
        records = runs(specs)
        return {spec: records[spec] for spec in specs if (spec.init, spec.seed) != ("erk", 1)}

    (error,) = tune(protocol, search, "data", Storage(tmp_path), train, Stop())
    assert isinstance(error, SearchError)
    assert "only 1 of the runs of a trial succeeded: rigl-erk-0.1-alpha" in str(error)
    assert sum("rigl-uniform" in label for label in runs.trained) == 4
    assert tune(protocol, search, "data", Storage(tmp_path), runs, Stop()) == []
    assert len(runs.trained) == 8


def test_random_trials_are_trained_together_and_the_others_in_turn(tuning, tmp_path):
    runs, calls = Runs(tmp_path / "log"), []

    def train(specs):
        calls.append(len(specs))
        return runs(specs)

    store = Storage(tmp_path)
    tuning.run(store, train)
    # Two thirds of six trials, of two runs each.
    assert calls == [8, 2, 2]
    trials = complete(store.open(tuning.name))
    assert len({(trial.params["alpha"], trial.params["delta_t"]) for trial in trials}) == 6


def test_random_trial_that_failed_is_done_again_and_the_others_are_kept(tuning, tmp_path):
    whole = Runs(tmp_path / "whole.log")
    tuning.run(Storage(tmp_path / "whole"), whole)
    second = whole.trained[2:4]
    runs, store = Runs(tmp_path / "log"), Storage(tmp_path / "broken")

    def failing(specs):
        return runs([spec for spec in specs if spec.label not in second])

    with pytest.raises(SearchError, match=second[0]):
        tuning.run(store, failing)
    assert len(complete(store.open(tuning.name))) == 3
    tuning.run(store, runs)
    assert sorted(runs.trained) == sorted(whole.trained)
    assert len(complete(store.open(tuning.name))) == SEARCH.trials


def test_other_protocol_data_or_range_is_another_search(tuning):
    others = [
        Tuning(tuning.protocol, SEARCH, "erk", 0.1, "other data"),
        Tuning(tuning.protocol, SEARCH, "uniform", 0.1, "data"),
        Tuning(tuning.protocol, SEARCH, "erk", 0.2, "data"),
        Tuning(tuning.protocol, dataclasses.replace(SEARCH, alpha=(0.1, 0.5)), "erk", 0.1, "data"),
    ]
    assert len({tuning.name, *(other.name for other in others)}) == 5


def test_search_of_a_protocol_changed_on_the_command_line_has_a_file(tiny_preset, tmp_path):
    change = Change.parse("model.kind=own/net:make")
    protocol = load_preset(str(tiny_preset), [change])
    search = dataclasses.replace(SEARCH, trials=1)
    runs = Runs(tmp_path / "log")
    assert tune(protocol, search, "data", Storage(tmp_path), runs, Stop()) == []
    (file,) = (tmp_path / "search").glob("*.db")
    assert file.name.startswith("tiny-with-model.kind-own-net-make-rigl-erk-0.1-")


def test_one_process_at_a_time_works_on_a_search_in_a_file(tmp_path):
    with Storage(tmp_path).claim("a") as first, Storage(tmp_path).claim("a") as second:
        assert first
        assert not second
    with Storage(tmp_path).claim("a") as again:
        assert again


def test_waiting_for_a_search_of_another_process_ends_at_a_stop(tuning, tmp_path):
    store, stop, runs = Storage(tmp_path), Stop(), Runs(tmp_path / "log")
    claimed = []

    class Busy(Storage):
        @contextlib.contextmanager
        def claim(self, name):
            claimed.append(name)
            with super().claim(name) as is_ours:
                # As the signal's handler does, in the first look.
                stop.request()
                yield is_ours

    with store.claim(tuning.name), pytest.raises(StoppedError):
        tune(tuning.protocol, SEARCH, "data", Busy(tmp_path), runs, stop)
    assert claimed == [tuning.name]
    assert runs.trained == []


def test_several_processes_may_work_on_a_search_in_a_database(tmp_path):
    store = Storage(tmp_path, f"sqlite:///{tmp_path}/base.db")
    with store.claim("a") as first, store.claim("a") as second:
        assert first
        assert second


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("bad://x", "--storage bad://x: .*bad; it takes a database as SQLAlchemy names it"),
        ("nonsense", "--storage nonsense: Could not parse"),
        ("postgresql+nodriver://me:secret@here/x", r"--storage .*me:\*\*\*@here"),
        ("sqlite:////no/such/folder/base.db", "unable to open database"),
    ],
)
def test_database_that_can_not_be_used_is_named(url, message):
    with pytest.raises(ProtocolError, match=message) as error:
        storage.check_database(url, connect=True)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    storage.check_database("sqlite://", connect=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by a POSIX signal")
def test_database_gives_the_trial_of_a_machine_that_died_to_another(
    tuning, tiny_preset, tmp_path, monkeypatch
):
    url = f"sqlite:///{tmp_path}/base.db"
    kill_in_the_third_trial(tiny_preset, tmp_path / "log", tmp_path, url)
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    # A machine that is busy may be late with a heartbeat, and is not dead for it.
    monkeypatch.setattr(storage, "GRACE_SECONDS", 8)
    store = Storage(tmp_path, url)
    time.sleep(10)
    runs = Runs(tmp_path / "log")
    tuning.run(store, runs)
    trials = complete(store.open(tuning.name))
    assert len(trials) == SEARCH.trials
    # The first run of the trial that was interrupted is not done again.
    assert len(runs.trained) == len(set(runs.trained)) == len(SEARCH.seeds) * SEARCH.trials
