"""The CIFAR-10 benchmark in a process that may be killed at any moment."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from threading import RLock

from tqdm import tqdm

from benchmarks.cifar.cli import main
from tests.support.processes import ROOT

EPOCHS = 5

# Differences to the preset `smoke`, whose runs take seconds without testing more.
SMALLER = {
    'dataset = "digits"': 'dataset = "cifar10"',
    "epochs = 2": f"epochs = {EPOCHS}",
    "batch_size = 32\n": "batch_size = 16\n",
    "delta_t = 10\n": "delta_t = 3\n",
}


def write_preset(path: Path) -> None:
    """The preset `smoke`, for images in class folders and fewer epochs."""
    text = (ROOT / "benchmarks" / "cifar" / "presets" / "smoke.toml").read_text()
    for was, becomes in SMALLER.items():
        assert text.count(was) == 1, was
        text = text.replace(was, becomes)
    path.write_text(text)


def run(arguments: list[str], log: Path) -> None:
    """Run `benchmarks/cifar/run.py`, and append its output to a file."""
    # The one that tqdm would make is shared between processes, and outlives one that is killed.
    tqdm.set_lock(RLock())
    with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        status = main([*arguments, "--threads", "1"])
    sys.exit(status)
