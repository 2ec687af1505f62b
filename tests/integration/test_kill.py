"""A run that is killed at random moments ends like an uninterrupted run."""

import itertools
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.integration.kill_worker import SAVE_EVERY, STEPS, train
from tests.support.processes import forkserver
from tests.support.ranks import needs_fork

KILLS, KILLS_OF_EACH_KIND = 20, 5
SIGKILLED = -9

pytestmark = [needs_fork, pytest.mark.slow]


class Run:
    """A folder, and the processes that train in it one after the other."""

    def __init__(self, folder: Path, method: str, name: str):
        folder.mkdir()
        self.folder, self.arguments = folder, (folder, method, name)

    def finish(self) -> None:
        assert not self.kill(events=10 * STEPS, delay=60)

    def kill(self, events: int, delay: float) -> bool:
        """Kill a process `delay` seconds after this number of events; return whether it was alive.

        What it did is checked: it began where the last save ended, and what it saved is there.
        """
        saved, known = self.saved_step(), len(self.events())
        process = forkserver().Process(target=train, args=self.arguments, daemon=True)
        process.start()
        while process.is_alive() and len(self.events()) < known + events:
            time.sleep(0.0005)
        process.join(delay)
        process.kill()
        process.join()
        assert process.exitcode in {0, SIGKILLED}
        did = self.events()[known:]
        assert did[:1] in ([], [("begun", saved)])
        self.assert_no_more_is_lost_than_since_the_last_save(did, saved)
        return process.exitcode == SIGKILLED

    def assert_no_more_is_lost_than_since_the_last_save(
        self, did: list[tuple[str, int]], saved: int
    ) -> None:
        completed = max([saved, *(step for event, step in did if event == "saved")])
        # A save that is killed after it replaced the file is complete, but is not in the log.
        attempted = max([saved, *(step for event, step in did if event == "saving")])
        assert self.saved_step() in {completed, attempted}
        reached = max([saved, *(step for _, step in did)])
        assert 0 <= reached - self.saved_step() <= SAVE_EVERY

    def events(self) -> list[tuple[str, int]]:
        """The events of all processes so far, with their steps."""
        journal = self.folder / "journal"
        if not journal.exists():
            return []
        lines = (line.split() for line in journal.read_text().splitlines())
        return [(event, int(step)) for event, step in lines]

    def saved_step(self) -> int:
        """The step of the checkpoint, which can always be read."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        saved = torch.load(path)
        progress = saved["optimizer"]["param_groups"][0]["sparseopt"]
        assert progress["steps"] == saved["step"]
        return saved["step"]

    def outcome(self) -> dict:
        return torch.load(self.folder / "outcome.pt")


def moment_of_death(run):
    """Whether the process was killed while saving or while training."""
    events = run.events()
    return "saving" if events and events[-1][0] == "saving" else "training"


def assert_same_outcome(expected, outcome):
    assert expected.keys() == outcome.keys()
    for part in ("weights", "masks", "state", "random"):
        assert expected[part].keys() == outcome[part].keys()
        for name, tensor in expected[part].items():
            assert torch.equal(tensor, outcome[part][name]), (part, name)
    for part in ("history", "lr", "steps"):
        assert expected[part] == outcome[part]


@pytest.mark.parametrize(("method", "name"), [("set", "AdamW"), ("rigl", "SGD")])
def test_run_killed_at_random_moments_ends_like_an_uninterrupted_run(tmp_path, method, name):
    uninterrupted = Run(tmp_path / "uninterrupted", method, name)
    uninterrupted.finish()
    expected = uninterrupted.outcome()
    assert expected["steps"] == STEPS
    assert sum(record["dropped"] > 0 for record in expected["history"]) > 10

    moments = random.Random(method)
    kills = Counter(training=0, saving=0)
    folders = (tmp_path / str(number) for number in itertools.count())
    run = Run(next(folders), method, name)
    while kills.total() < KILLS or min(kills.values()) < KILLS_OF_EACH_KIND:
        if run.kill(moments.randrange(12), moments.uniform(0, 0.008)):
            kills[moment_of_death(run)] += 1
        else:
            # Finished before it was hit; the next one starts from nothing.
            assert_same_outcome(expected, run.outcome())
            run = Run(next(folders), method, name)
        assert kills.total() < 5 * KILLS, kills
    run.finish()
    assert_same_outcome(expected, run.outcome())
    assert {path.name for path in run.folder.iterdir()} == {
        "journal",
        "checkpoint.pt",
        "outcome.pt",
    }
