"""Sparse training from the first step to the last: wrap an optimizer, keep the training loop."""

from sparseopt.distributions import available_distributions, register_distribution
from sparseopt.flops import FlopsReport, LayerFlops
from sparseopt.masks.layer import SparseLayer
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
from sparseopt.methods.gradient_memory import Accumulated, GradientMemory, Smoothed
from sparseopt.optimizer import SparseOptimizer
from sparseopt.optimizer.progress import UpdateRecord
from sparseopt.pruning_at_init import (
    balanced_batch,
    final_masks,
    grasp,
    shuffle_masks,
    snip,
    synflow,
)
from sparseopt.schedules import UpdateSchedule
from sparseopt.speedup import (
    CompactedTraining,
    Compaction,
    CompactionReport,
    Condensation,
    CondensedLinear,
    CSRLinear,
    LayerSizes,
    LayerTimes,
    Remaining,
    SpeedUp,
    compact,
    condense,
    speed_up,
)
from sparseopt.structured import (
    ChannelGroup,
    ChannelSlice,
    find_channel_groups,
)
from sparseopt.utils.errors import (
    CheckpointError,
    CompactionError,
    NoSparseLayerError,
    RankMismatchError,
    UntraceableModelError,
)
from sparseopt.utils.public_names import adopt_public_names

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
    "RankMismatchError",
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
    "SpeedUp",
    "Static",
    "TrainingCost",
    "UntraceableModelError",
    "Update",
    "UpdateRecord",
    "UpdateSchedule",
    "available_distributions",
    "available_methods",
    "balanced_batch",
    "compact",
    "condense",
    "final_masks",
    "find_channel_groups",
    "grasp",
    "register_distribution",
    "register_method",
    "shuffle_masks",
    "snip",
    "speed_up",
    "synflow",
]

adopt_public_names(__name__, globals(), __all__)
