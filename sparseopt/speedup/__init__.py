"""Turning sparsity into time: compact models, condensed layers, faster training."""

from sparseopt.speedup.compacted_training import CompactedTraining
from sparseopt.speedup.compaction import (
    Compaction,
    CompactionReport,
    LayerSizes,
    Remaining,
    compact,
)
from sparseopt.speedup.condensation import Condensation, LayerTimes, condense
from sparseopt.speedup.live_training import SpeedUp, speed_up
from sparseopt.speedup.sparse_linear import CondensedLinear, CSRLinear

__all__ = [
    "CSRLinear",
    "CompactedTraining",
    "Compaction",
    "CompactionReport",
    "Condensation",
    "CondensedLinear",
    "LayerSizes",
    "LayerTimes",
    "Remaining",
    "SpeedUp",
    "compact",
    "condense",
    "speed_up",
]
