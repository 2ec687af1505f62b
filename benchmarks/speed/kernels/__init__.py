"""Kernels that compute with live weights only, layer by layer, beside the fastest dense code.

A figure of ``benchmarks/speed/run.py``: layers of known networks in every precision, at several
densities. With one thread the time is the CPU time of that thread, with more it is elapsed time.
"""

from benchmarks.speed.kernels.figure import add_options, measure
from benchmarks.speed.kernels.report import report_lines

__all__ = ["add_options", "measure", "report_lines"]
