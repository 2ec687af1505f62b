"""The accountant: what inference and training cost, dense and sparse."""

from sparseopt.flops.counting import count_operations
from sparseopt.flops.recording import InputRecorder
from sparseopt.flops.report import FlopsReport, LayerFlops, make_report, sample_count

__all__ = [
    "FlopsReport",
    "InputRecorder",
    "LayerFlops",
    "count_operations",
    "make_report",
    "sample_count",
]
