"""Sparse training from the first step to the last: wrap an optimizer, keep the training loop."""

from sparseopt.errors import CheckpointError, NoSparseLayerError
from sparseopt.flops import FlopsReport, LayerFlops
from sparseopt.history import UpdateRecord
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

__version__ = "0.1.0"

__all__ = [
    "MEST",
    "NM",
    "SET",
    "SNFS",
    "Accumulated",
    "CheckpointError",
    "Compose",
    "DropGrow",
    "FlopsReport",
    "GraNet",
    "GradientMemory",
    "Gradual",
    "LayerFlops",
    "Method",
    "Move",
    "NoSparseLayerError",
    "Pruning",
    "Redistributing",
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
    "Update",
    "UpdateRecord",
    "UpdateSchedule",
    "available_methods",
    "balanced_batch",
    "final_masks",
    "grasp",
    "register_method",
    "shuffle_masks",
    "snip",
    "synflow",
]
