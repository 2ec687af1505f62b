"""Measure what sparsity gives in time: ``benchmarks/speed/run.py --help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Read once, when torch is imported. Where another job shares the cores, threads that spin at
    # barriers cost every operation several milliseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Run as a script, Python puts this folder first; the package is found from the root.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.speed.cli import main

    sys.exit(main())
