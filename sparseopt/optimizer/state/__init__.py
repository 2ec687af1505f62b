"""The inner optimizer's state of sparse layers: of live weights only, or dense and masked."""

from sparseopt.optimizer.state.base import StateBackend, unhooked_step
from sparseopt.optimizer.state.choice import StateMode, make_backend, renamed_mode
from sparseopt.optimizer.state.live import LiveState
from sparseopt.optimizer.state.masked import MaskedState

__all__ = [
    "LiveState",
    "MaskedState",
    "StateBackend",
    "StateMode",
    "make_backend",
    "renamed_mode",
    "unhooked_step",
]
