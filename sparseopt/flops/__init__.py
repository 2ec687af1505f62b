"""The cost of inference and training, dense and sparse, in FLOPs."""

from sparseopt.flops.accountant import Accountant, count_flops
from sparseopt.flops.report import FlopsReport, LayerFlops

__all__ = ["Accountant", "FlopsReport", "LayerFlops", "count_flops"]
