"""Runs of `rigl-struct` on the small nets with channels."""

from sparseopt import RigLStruct, SparseOptimizer
from tests.support.catalogue import build
from tests.support.channel_nets import ChannelNet, groups_of
from tests.support.nets import make

STEPS = 60
SETTINGS = {"density": 0.3, "total_steps": STEPS, "delta_t": 3, "alpha": 0.6, "seed": 3}
#: With a density of .25 for each convolution: half of its channels.
HALF = {"init": {}, "density": 0.25}
HALF_OF = {"stem.weight": 3, "c1.weight": 3, "wide.weight": 4}


def wrapped(name="SGD", state="auto", *, kind=ChannelNet, regrow="keep", form=None, **changes):
    model = make(kind, **(form or {}))
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(
        inner,
        model,
        method=RigLStruct(groups=groups_of(kind), regrow=regrow),
        state=state,
        **{**SETTINGS, **changes},
    )
    return model, optimizer
