"""The types of the arguments that the public functions take, for annotations in your own code.

Example:
    >>> from sparseopt.typing import Init
    >>> settings: dict[str, Init] = {"early layers dense": {"conv1": 1.0}, "all alike": "uniform"}
"""

from sparseopt.distributions import Distribution, Init, Shapes
from sparseopt.masks.drop_and_grow import Regrow
from sparseopt.masks.selection import Selection, Selector
from sparseopt.methods.compose import Schedule, Score
from sparseopt.optimizer.state import StateMode
from sparseopt.schedules import Decay
from sparseopt.speedup.inference.condensation import Precision
from sparseopt.speedup.inference.masks import Masks

__all__ = [
    "Decay",
    "Distribution",
    "Init",
    "Masks",
    "Precision",
    "Regrow",
    "Schedule",
    "Score",
    "Selection",
    "Selector",
    "Shapes",
    "StateMode",
]
