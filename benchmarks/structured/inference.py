"""Inference times of networks with the widths and densities of the trained ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from functools import partial

import torch

from benchmarks.common import arguments
from benchmarks.common.environment import describe_environment
from benchmarks.speed.records import timed
from benchmarks.structured.models import Shape, ViT
from benchmarks.structured.protocol import METHODS, shape_at_first
from benchmarks.structured.records import (
    Record,
    Settings,
    kind_of,
    read_records,
    read_results,
    refuse_other,
)
from sparseopt import condense

#: Methods whose inference time is another method's, because only the number of epochs differs.
SAME_NETWORK = {"rigl-same-time": "rigl"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add(
        "--device",
        type=arguments.device,
        default="cpu",
        help="where to compute (default: %(default)s)",
    )
    add("--batch-size", type=arguments.positive, default=64, help="images (default: %(default)s)")
    add(
        "--rounds",
        type=arguments.positive,
        default=15,
        help="rounds that count (default: %(default)s)",
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time the networks of every seed that has a trained network without a time.

    Raises:
        ResultsError: if the folder has times of other options.
    """
    asked = {
        **{name: getattr(options, name) for name in ("batch_size", "rounds", "threads")},
        "device": kind_of(options.device.type),
    }
    for file, record in read_results(options.out, "inference").items():
        refuse_other(file, inference_settings(record), asked)
    found: dict[int, dict[str, Record]] = {}
    for run in read_records(options.out, "accuracy"):
        if run["method"] not in SAME_NETWORK:
            found.setdefault(run["seed"], {})[run["method"]] = run
    for seed, runs in sorted(found.items()):
        name = f"inference-{seed}"
        path = options.out / f"{name}.json"
        known = json.loads(path.read_text())["milliseconds"] if path.exists() else {}
        if not runs.keys() <= known.keys():
            yield name, times(seed, runs, options)


def inference_settings(record: Record) -> Settings:
    """What times were measured with."""
    return {
        "batch_size": record["batch"],
        "rounds": record["rounds"],
        "threads": record["environment"]["threads"],
        "device": kind_of(record["environment"]["device"]),
    }


def times(seed: int, runs: Mapping[str, Record], options: argparse.Namespace) -> Record:
    """The median milliseconds of each network, called in turn on the same images.

    Each network is the one that ``condense`` returns: dense layers are folded and frozen, and
    layers with zeros compute with live weights only, wherever that is faster.
    """
    torch.manual_seed(seed)
    images = torch.randn(options.batch_size, 3, 32, 32, device=options.device)
    calls = {}
    for method in (one for one in METHODS if one in runs):
        network = trained_network(runs[method]).to(options.device).eval()
        fastest = condense(network, "nonzero", example_inputs=images, compiled=False).model
        calls[method] = partial(fastest, images)
    with torch.no_grad():
        measured = timed(calls, options.batch_size, options.rounds, options.device)
    return {"seed": seed, **measured, "environment": describe_environment(options.device)}


def trained_network(run: Record) -> ViT:
    """A network with the widths and densities of a run's network, as `compact` returns it.

    The values of the weights are random, and so are the positions of the zeros.
    """
    options = argparse.Namespace(**run["options"])
    shape = shape_at_first(run["method"], options)
    if "heads" in run:
        shape = Shape(shape.width, shape.head_dim, tuple(run["heads"]), tuple(run["neurons"]))
    network = ViT(shape, patch=options.patch)
    for name, share in run.get("live_compacted", {}).items():
        weight = network.get_parameter(name)
        weight.data *= torch.rand_like(weight) < share
    return network
