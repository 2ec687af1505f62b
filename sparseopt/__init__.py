"""Sparse training from the first step to the last: wrap an optimizer, keep the training loop."""

from sparseopt.compaction import (
    CompactedTraining,
    Compaction,
    CompactionError,
    CompactionReport,
    LayerSizes,
    Remaining,
    compact,
)
from sparseopt.errors import CheckpointError, NoSparseLayerError
from sparseopt.flops import FlopsReport, LayerFlops
from sparseopt.history import UpdateRecord
from sparseopt.inference import Condensation, CondensedLinear, CSRLinear, LayerTimes, condense
from sparseopt.layers import SparseLayer
from sparseopt.lottery import final_masks, shuffle_masks
from sparseopt.memory import Accumulated, GradientMemory, Smoothed
from sparseopt.methods import (
    MEST,
    NM,
    SET,
    SNFS,
    Compose,
    DropGrow,
    Gradual,
    GraNet,
    Method,
    Move,
    Pruning,
    Redistributing,
    Rewiring,
    RigL,
    RigLSG,
    RigLSM,
    RigLStruct,
    SRigL,
    Static,
    TrainingCost,
    Update,
    available_methods,
    register_method,
)
from sparseopt.oneshot import balanced_batch, grasp, snip, synflow
from sparseopt.optimizer import SparseOptimizer
from sparseopt.schedules import UpdateSchedule
from sparseopt.structure import (
    ChannelGroup,
    ChannelSlice,
    UntraceableModelError,
    find_channel_groups,
)

__version__ = "0.1.0"

__all__ = [
    "MEST",
    "NM",
    "SET",
    "SNFS",
    "Accumulated",
    "CSRLinear",
    "ChannelGroup",
    "ChannelSlice",
    "CheckpointError",
    "CompactedTraining",
    "Compaction",
    "CompactionError",
    "CompactionReport",
    "Compose",
    "Condensation",
    "CondensedLinear",
    "DropGrow",
    "FlopsReport",
    "GraNet",
    "GradientMemory",
    "Gradual",
    "LayerFlops",
    "LayerSizes",
    "LayerTimes",
    "Method",
    "Move",
    "NoSparseLayerError",
    "Pruning",
    "Redistributing",
    "Remaining",
    "Rewiring",
    "RigL",
    "RigLSG",
    "RigLSM",
    "RigLStruct",
    "SRigL",
    "Smoothed",
    "SparseLayer",
    "SparseOptimizer",
    "Static",
    "TrainingCost",
    "UntraceableModelError",
    "Update",
    "UpdateRecord",
    "UpdateSchedule",
    "available_methods",
    "balanced_batch",
    "compact",
    "condense",
    "final_masks",
    "find_channel_groups",
    "grasp",
    "register_method",
    "shuffle_masks",
    "snip",
    "synflow",
]
