"""Reproduce the report's CIFAR results: ``benchmarks/cifar/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # For a script Python puts its folder first; the package is found from the root.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.common.start import start

    start("benchmarks.cifar.cli")
