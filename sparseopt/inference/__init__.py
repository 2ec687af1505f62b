"""Running what was trained sparse: linear layers in the form that is fastest on this machine."""

from sparseopt.inference.condensation import Condensation, LayerTimes, condense
from sparseopt.inference.condensed import CondensedLinear, CSRLinear

__all__ = ["CSRLinear", "Condensation", "CondensedLinear", "LayerTimes", "condense"]
