"""How the programs of all benchmarks start."""

from __future__ import annotations

import importlib
import os
import sys

INSTALL = 'pip install -e ".[bench]"'


def start(module: str) -> None:
    """Call ``main`` of a module and end the process with its status.

    Nothing that has to be installed is imported before, so that whatever is missing is named.
    """
    # Read once, when torch is imported. Where another job shares the cores, threads that spin at
    # barriers cost every operation several milliseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Or torch's profiler reports on standard error whenever it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # A line of a log file is there when it is printed.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        status = importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        if str(error.name).startswith("benchmarks"):
            raise
        status = f"error: {error}; what the benchmarks need is installed by {INSTALL}"
    sys.exit(status)
