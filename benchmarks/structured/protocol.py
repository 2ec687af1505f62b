"""What is trained for the table of accuracy: methods, shapes, and the options that count."""

from __future__ import annotations

import argparse

from benchmarks.structured.models import HEAD_DIM, Shape
from benchmarks.structured.records import Record, Settings, kind_of

METHODS = ("dense", "narrower", "thinner", "rigl-struct", "srigl", "rigl", "rigl-same-time")
#: The trained networks, each with its words in the report.
MEANING = {
    "dense": "the network itself",
    "narrower": "a residual stream of half the width, and so a quarter of the weights",
    "thinner": "the full width, with as many heads and neurons as `rigl-struct` leaves",
    "rigl-struct": "neurons move, and heads if enough of them are live, in `CompactedTraining`; "
    "then `compact` removes what is dropped",
    "srigl": "`SRigL(gamma=.95)`, on a CPU with `speed_up`; `compact` removes ablated neurons",
    "rigl": "single weights move, on a CPU with `speed_up`",
    "rigl-same-time": "`rigl`, for as many epochs as take the training time of `rigl-struct`",
}
#: Methods with masks of single weights.
WEIGHTS_MOVE = frozenset({"srigl", "rigl", "rigl-same-time"})
#: The options that can change a result. All results in a folder have the same ones.
OPTIONS = (
    "epochs",
    "batch_size",
    "lr",
    "width",
    "depth",
    "patch",
    "density",
    "weights",
    "delta_t",
    "images",
    "compacted",
)


def shape_at_first(method: str, options: argparse.Namespace) -> Shape:
    """The widths of a method's network when its training begins."""
    dense = Shape.uniform(options.depth, options.width, HEAD_DIM)
    if method == "narrower":
        return Shape.uniform(options.depth, options.width // 2, HEAD_DIM)
    if method == "thinner":
        return dense.thinner(options.density)
    return dense


def data_of(options: argparse.Namespace) -> str:
    """The name of the data to train on."""
    return "digits" if options.data_dir is None else "cifar10"


def asked_settings(options: argparse.Namespace) -> Settings:
    """What a run with these options is made with."""
    return {
        **{name: getattr(options, name) for name in OPTIONS},
        "data": data_of(options),
        "device": kind_of(options.device.type),
    }


def run_settings(run: Record) -> Settings:
    """What a finished run was made with."""
    return {
        **{name: run["options"].get(name) for name in OPTIONS},
        "data": run["data"],
        "device": kind_of(run["environment"]["device"]),
    }
