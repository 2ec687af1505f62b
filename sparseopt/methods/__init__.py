"""The methods, one in each file."""

from sparseopt.methods.base import DropGrow, Method, TrainingCost
from sparseopt.methods.compose import Compose, Schedule, Score
from sparseopt.methods.gradual import Gradual
from sparseopt.methods.granet import GraNet
from sparseopt.methods.mest import MEST
from sparseopt.methods.nm import NM
from sparseopt.methods.pruning import Pruning
from sparseopt.methods.redistribution import Redistributing
from sparseopt.methods.registry import available_methods, get_method, register_method
from sparseopt.methods.rigl import RigL
from sparseopt.methods.rigl_redistributed import RigLSG, RigLSM
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.methods.set import SET
from sparseopt.methods.snfs import SNFS
from sparseopt.methods.srigl import SRigL
from sparseopt.methods.static import Static
from sparseopt.methods.update import Move, Rewiring, Update

__all__ = [
    "MEST",
    "NM",
    "SET",
    "SNFS",
    "Compose",
    "DropGrow",
    "GraNet",
    "Gradual",
    "Method",
    "Move",
    "Pruning",
    "Redistributing",
    "Rewiring",
    "RigL",
    "RigLSG",
    "RigLSM",
    "RigLStruct",
    "SRigL",
    "Schedule",
    "Score",
    "Static",
    "TrainingCost",
    "Update",
    "available_methods",
    "get_method",
    "register_method",
]
