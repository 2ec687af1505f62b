"""Sparse training from the first step to the last: wrap an optimizer, keep the training loop."""

from sparseopt.errors import CheckpointError, NoSparseLayerError
from sparseopt.flops import FlopsReport, LayerFlops
from sparseopt.history import UpdateRecord
from sparseopt.layers import SparseLayer
from sparseopt.methods import (
    SET,
    DropGrow,
    Method,
    Move,
    Pruning,
    RigL,
    Static,
    TrainingCost,
    Update,
    available_methods,
    register_method,
)
from sparseopt.oneshot import balanced_batch, grasp, snip, synflow
from sparseopt.optimizer import SparseOptimizer
from sparseopt.schedules import UpdateSchedule

__version__ = "0.1.0"

__all__ = [
    "SET",
    "CheckpointError",
    "DropGrow",
    "FlopsReport",
    "LayerFlops",
    "Method",
    "Move",
    "NoSparseLayerError",
    "Pruning",
    "RigL",
    "SparseLayer",
    "SparseOptimizer",
    "Static",
    "TrainingCost",
    "Update",
    "UpdateRecord",
    "UpdateSchedule",
    "available_methods",
    "balanced_batch",
    "grasp",
    "register_method",
    "snip",
    "synflow",
]
