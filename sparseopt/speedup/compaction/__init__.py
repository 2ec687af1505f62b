"""Removing from a model, physically, the channels that its masks dropped."""

from sparseopt.speedup.compaction.pipeline import Compaction, compact
from sparseopt.speedup.compaction.report import CompactionReport, LayerSizes, Remaining

__all__ = ["Compaction", "CompactionReport", "LayerSizes", "Remaining", "compact"]
