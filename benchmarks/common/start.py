"""How the programs of all benchmarks start."""

from __future__ import annotations

import importlib
import os
import sys

INSTALL = 'pip install -e ".[bench]"'


def start(module: str) -> None:
    """Call ``main`` of a module and end the process with its status.

    No package that has to be installed is imported before, so that the error can name a missing
    one.
    """
    # torch reads this once, at its import. If another job shares the cores, threads that spin at
    # barriers cost every operation several milliseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Otherwise torch's profiler writes to standard error whenever it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # Each line is in a log file as soon as it is printed.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        status = importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        if str(error.name).startswith("benchmarks"):
            raise
        status = f"error: {error}; install the packages of the benchmarks by {INSTALL}"
    sys.exit(status)
