"""The CIFAR-10 benchmark, ended by SIGKILL at random moments, loses no result and resumes."""

import json
import random
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cifar.records import read_results
from tests.benchmarks.conftest import CIFAR10_NAMES
from tests.integration.kill_benchmark import EPOCHS, run, write_preset
from tests.support.processes import forkserver
from tests.support.ranks import needs_fork

KILLS, SIGKILLED = 6, -9
METHODS = ("set", "rigl")

pytestmark = [needs_fork, pytest.mark.slow]


@pytest.fixture
def arguments(tmp_path):
    """Two runs of a few seconds, on random images."""
    images, generator = tmp_path / "images", np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in CIFAR10_NAMES:
            folder = images / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    write_preset(tmp_path / "tiny.toml")
    return [
        *("--preset", str(tmp_path / "tiny.toml"), "--data-dir", str(images)),
        *("--methods", *METHODS, "--inits", "erk", "--seeds", "0"),
        *("--set", "also=[]", "--studies", "main"),
    ]


# Of 80 images a tenth is for validation, and a batch has 16.
STEPS_AN_EPOCH = 5


class Benchmark:
    """A folder of results, and the processes that fill it one after the other."""

    def __init__(self, folder: Path, arguments: list[str]):
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.arguments = ([*arguments, "--out", str(folder)], self.log)

    def start(self):
        process = forkserver().Process(target=run, args=self.arguments, daemon=True)
        process.start()
        return process

    def finish(self) -> str:
        before = len(self.log.read_text()) if self.log.exists() else 0
        process = self.start()
        process.join()
        output = self.log.read_text()[before:]
        assert process.exitcode == 0, output
        return output

    def kill(self, files: int, delay: float) -> bool:
        """Kill a process `delay` seconds after it wrote this number of files, unless it ended."""
        process = self.start()
        written, last = 0, self.state_of_files()
        while process.is_alive() and written < files:
            time.sleep(0.001)
            written, last = written + (self.state_of_files() != last), self.state_of_files()
        process.join(delay)
        process.kill()
        process.join()
        assert process.exitcode in {0, SIGKILLED}, self.log.read_text()
        return process.exitcode == SIGKILLED

    def state_of_files(self) -> dict[str, int]:
        """Checkpoints and results, each with its time of writing."""
        paths = [*self.folder.glob("checkpoints/*.pt"), *self.folder.glob("results.jsonl")]
        state = {}
        for path in paths:
            # A checkpoint is removed when its run is in the results.
            try:
                state[path.name] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
        return state

    def results(self) -> dict[str, dict]:
        """Finished runs by their keys; the file can always be read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*the last line, which was cut short")
            return {record["key"]: record for record in read_results(self.folder / "results.jsonl")}

    def epochs(self) -> dict[str, int]:
        """Finished epochs of runs that have a checkpoint; it can always be read."""
        return {
            path.stem: len(torch.load(path)["progress"]["curve"])
            for path in self.folder.glob("checkpoints/*.pt")
        }


def test_results_survive_kills_and_end_as_if_there_had_been_none(tmp_path, arguments):
    uninterrupted = Benchmark(tmp_path / "uninterrupted", arguments)
    uninterrupted.finish()
    expected = uninterrupted.results()
    assert len(expected) == len(METHODS)

    moments = random.Random(0)
    broken = Benchmark(tmp_path / "broken", arguments)
    kills = kills_of_begun_runs = 0
    results, epochs = broken.results(), broken.epochs()
    while kills < KILLS and broken.kill(moments.randrange(3), moments.uniform(0, 0.15)):
        kills += 1
        kills_of_begun_runs += bool(broken.epochs())
        assert results.items() <= broken.results().items()
        for key, count in epochs.items():
            assert key in broken.results() or broken.epochs()[key] >= count
        results, epochs = broken.results(), broken.epochs()
    output = broken.finish()

    assert kills >= 3
    assert kills_of_begun_runs >= 1
    # Between its result and the removal of its checkpoint a run has both.
    for key, count in ((key, epochs[key]) for key in epochs if key not in results):
        done, steps = count * STEPS_AN_EPOCH, EPOCHS * STEPS_AN_EPOCH
        assert f"resumed at step {done} of {steps}" in output, key
    assert re.search(rf"2 runs, {len(results)} of them finished", output)
    final = broken.results()
    assert final.keys() == expected.keys()
    for key, record in final.items():
        assert len(record["curve"]) == EPOCHS
        for name in ("label", "curve", "accuracy", "weights_sha256", "density", "flops", "updates"):
            assert record[name] == expected[key][name], name
    lines = (broken.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == list(final)
    assert broken.epochs().keys() <= results.keys()
