"""The inner optimizer's state of sparse layers: held for live weights only, or dense and masked."""

from sparseopt.optimizer.state.base import StateStore, unhooked_step
from sparseopt.optimizer.state.choice import StateMode, choose_store
from sparseopt.optimizer.state.compact import CompactState
from sparseopt.optimizer.state.masked import MaskedState

__all__ = [
    "CompactState",
    "MaskedState",
    "StateMode",
    "StateStore",
    "choose_store",
    "unhooked_step",
]
