"""Sparse training as the semantics define it, implemented a second time in NumPy.

Nothing here imports `sparseopt`: the tests compare the package with this, never with itself. Every
array is one-dimensional, in the logical (row-major) order of the weight, also where PyTorch stores
the weight in another order.
"""

from tests.oracle.channels import ChannelOracle, Owned
from tests.oracle.distributions import er_densities, erk_densities, live_counts, uniform_densities
from tests.oracle.granet import GraNetOracle
from tests.oracle.masks import generator_of, random_masks
from tests.oracle.mest import MESTOracle
from tests.oracle.methods import (
    LayerUpdate,
    RigLOracle,
    SETOracle,
    StaticOracle,
    regrowth,
)
from tests.oracle.n_of_m import NMOracle, best_n_of_m, groups
from tests.oracle.pruning import PruningOracle
from tests.oracle.redistribution import (
    AccumulatedRigLOracle,
    Momentum,
    RigLSGOracle,
    RigLSMOracle,
    SNFSOracle,
    grow_by_momentum,
    water_level,
)
from tests.oracle.schedules import cosine_fraction, default_t_end, is_update_step
from tests.oracle.selection import brute_force_order, largest, smallest
from tests.oracle.srigl import SRigLOracle, constant_fan_in, masks_of_constant_fan_in

__all__ = [
    "AccumulatedRigLOracle",
    "ChannelOracle",
    "GraNetOracle",
    "LayerUpdate",
    "MESTOracle",
    "Momentum",
    "NMOracle",
    "Owned",
    "PruningOracle",
    "RigLOracle",
    "RigLSGOracle",
    "RigLSMOracle",
    "SETOracle",
    "SNFSOracle",
    "SRigLOracle",
    "StaticOracle",
    "best_n_of_m",
    "brute_force_order",
    "constant_fan_in",
    "cosine_fraction",
    "default_t_end",
    "er_densities",
    "erk_densities",
    "generator_of",
    "groups",
    "grow_by_momentum",
    "is_update_step",
    "largest",
    "live_counts",
    "masks_of_constant_fan_in",
    "random_masks",
    "regrowth",
    "smallest",
    "uniform_densities",
    "water_level",
]
