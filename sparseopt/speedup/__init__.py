"""Turns sparsity into time: compact models, condensed layers, faster training."""

from sparseopt.speedup.compacted_training import CompactedTraining
from sparseopt.speedup.compaction import (
    Compacted,
    Compaction,
    CompactionReport,
    LayerSizes,
    Remaining,
    compact,
)
from sparseopt.speedup.inference import (
    Condensation,
    CondensationReport,
    Condensed,
    LayerTimes,
    condense,
    load_sparse,
    save_sparse,
)
from sparseopt.speedup.inference.sparse_linear import CondensedLinear, CSRLinear
from sparseopt.speedup.live_training import SpeedUp, speed_up

__all__ = [
    "CSRLinear",
    "Compacted",
    "CompactedTraining",
    "Compaction",
    "CompactionReport",
    "Condensation",
    "CondensationReport",
    "Condensed",
    "CondensedLinear",
    "LayerSizes",
    "LayerTimes",
    "Remaining",
    "SpeedUp",
    "compact",
    "condense",
    "load_sparse",
    "save_sparse",
    "speed_up",
]
