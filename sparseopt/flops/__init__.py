"""The accountant: what inference and training cost, dense and sparse."""

from sparseopt.flops.accountant import Accountant
from sparseopt.flops.report import FlopsReport, LayerFlops

__all__ = ["Accountant", "FlopsReport", "LayerFlops"]
