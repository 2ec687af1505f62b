"""Reproduce the report's CIFAR-10 results: ``python benchmarks/cifar/run.py --help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """Prepare the process, then hand over to the command line."""
    # Read once, when torch is imported. Where another job shares the cores, threads that spin at
    # barriers cost every operation several milliseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Run as a script, Python puts this folder first; the package is found from the root.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.cifar.cli import main as run

    # A line of a log file is there when it is printed.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    return run()


if __name__ == "__main__":
    sys.exit(main())
