"""Physically removes from a model the channels that its masks dropped."""

from sparseopt.speedup.compaction.pipeline import Compaction, compact
from sparseopt.speedup.compaction.report import CompactionReport, LayerSizes, Remaining
from sparseopt.speedup.compaction.result import Compacted

__all__ = ["Compacted", "Compaction", "CompactionReport", "LayerSizes", "Remaining", "compact"]
