"""Taking out of a model, physically, the channels that its masks took out."""

from sparseopt.compaction.checking import CompactionError
from sparseopt.compaction.procedure import Compaction, compact
from sparseopt.compaction.report import CompactionReport, LayerSizes, Remaining

__all__ = [
    "Compaction",
    "CompactionError",
    "CompactionReport",
    "LayerSizes",
    "Remaining",
    "compact",
]
