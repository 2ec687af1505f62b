"""Kernels that compute with live weights only, layer by layer, beside the fastest dense way.

A figure of ``benchmarks/speed/run.py``: layers of known networks in every precision, at several
densities, on one thread by the CPU time of that thread, or on more by the clock on the wall.
"""

from benchmarks.speed.kernels.figure import add_options, measure
from benchmarks.speed.kernels.report import report_lines

__all__ = ["add_options", "measure", "report_lines"]
