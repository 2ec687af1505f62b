"""Taking out of a model, physically, the channels that its masks took out."""

from sparseopt.compaction.checking import CompactionError
from sparseopt.compaction.procedure import Compaction, compact
from sparseopt.compaction.report import CompactionReport, LayerSizes, Remaining
from sparseopt.compaction.training import CompactedTraining

__all__ = [
    "CompactedTraining",
    "Compaction",
    "CompactionError",
    "CompactionReport",
    "LayerSizes",
    "Remaining",
    "compact",
]
