"""Running a module of the tests in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 600


def start(module: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start `python -m module args` from the root of the project.

    Trainers that restore the model, make the optimizer and then restore the optimizer are told that
    the model was sparse before; they go on with the checkpoint's masks.
    """
    strict = ["-W", "error::UserWarning", "-W", "ignore:the model was sparse before:UserWarning"]
    return subprocess.Popen(
        [sys.executable, *strict, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen]) -> None:
    """Wait for all of them; the output of one that failed is the error's message."""
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


def free_port() -> str:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
