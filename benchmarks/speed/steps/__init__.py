"""Whole training steps with ``speed_up``, beside dense ones in bfloat16 and float32.

A figure of ``benchmarks/speed/run.py``: the forward and the backward pass and the optimizer, of
networks for images and of transformers, dense and at some densities.
"""

from benchmarks.speed.steps.figure import add_options, measure
from benchmarks.speed.steps.report import report_lines

__all__ = ["add_options", "measure", "report_lines"]
