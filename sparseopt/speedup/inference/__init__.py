"""Sparse models for inference: faster copies of a model, and small files."""

from sparseopt.speedup.inference.condensation import Condensation, Condensed, condense
from sparseopt.speedup.inference.files import load_sparse, save_sparse
from sparseopt.speedup.inference.report import CondensationReport, LayerTimes

__all__ = [
    "Condensation",
    "CondensationReport",
    "Condensed",
    "LayerTimes",
    "condense",
    "load_sparse",
    "save_sparse",
]
