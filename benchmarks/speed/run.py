"""Measure what sparsity gives in time: ``benchmarks/speed/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the script's folder first in sys.path; the package is imported from the root.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.common.start import start

    start("benchmarks.speed.cli")
