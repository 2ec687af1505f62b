"""Inference times of the networks whose accuracy was measured, as they would be used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.common.environment import describe_environment
from benchmarks.structured.accuracy import METHODS, WEIGHTS_MOVE, shape_at_first
from benchmarks.structured.models import Shape, ViT
from sparseopt import condense
from sparseopt.speedup.timing import time_in_turn

Record = dict[str, Any]

#: The same network as another method's, trained with another number of steps.
SAME_NETWORK = {"rigl-same-time": "rigl"}
#: Methods whose dropped neurons and heads `compact` removes.
COMPACTED = frozenset({"rigl-struct", "srigl"})
MILLI = 1e3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add("--device", default="cpu", help="where to compute (default: %(default)s)")
    add("--batch-size", type=int, default=64, help="images (default: %(default)s)")
    add("--rounds", type=int, default=15, help="rounds that count (default: %(default)s)")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time the networks of every seed whose inference has no result yet."""
    found: dict[int, list[Record]] = {}
    for path in sorted(options.out.glob("accuracy-*.json")):
        record = json.loads(path.read_text())
        found.setdefault(record["seed"], []).append(record)
    for seed, records in sorted(found.items()):
        name = f"inference-{seed}"
        if not (options.out / f"{name}.json").exists():
            runs = {record["method"]: record for record in records}
            yield name, times(seed, runs, options)


def times(seed: int, runs: Mapping[str, Record], options: argparse.Namespace) -> Record:
    """The median milliseconds of each network, called in turn on the same images.

    Each network is the one that ``condense`` returns: dense layers are folded and frozen, and
    layers with zeros compute with live weights only, wherever that is faster.
    """
    torch.manual_seed(seed)
    device = torch.device(options.device)
    images = torch.randn(options.batch_size, 3, 32, 32, device=device)
    calls = {}
    for method in (one for one in METHODS if one in runs and one not in SAME_NETWORK):
        network = trained_network(runs[method]).to(device).eval()
        fastest = condense(network, "nonzero", example_inputs=images, compiled=False).model
        calls[method] = partial(fastest, images)
    with torch.no_grad():
        measured = time_in_turn(calls, rounds=options.rounds, device=device)
    return {
        "seed": seed,
        "batch": options.batch_size,
        "rounds": options.rounds,
        "milliseconds": {name: MILLI * time.median for name, time in measured.items()},
        "environment": describe_environment(device),
    }


def trained_network(run: Record) -> ViT:
    """A network with the widths and the number of live weights of a run's result.

    The values of the weights are random, and so are the positions of the zeros.
    """
    options = argparse.Namespace(**run["options"])
    whole = shape_at_first(run["method"], options)
    network = ViT(shape_at_last(run, whole), patch=options.patch)
    if run["method"] in WEIGHTS_MOVE:
        sizes = {name: one.numel() for name, one in ViT(whole).named_parameters()}
        for name, weight in network.named_parameters():
            if name in run["live"]:
                share = run["live"][name] * sizes[name] / weight.numel()
                weight.data *= torch.rand_like(weight) < share
    return network


def shape_at_last(run: Record, whole: Shape) -> Shape:
    """The widths of a run's result, without the neurons and heads that it dropped."""
    if run["method"] not in COMPACTED:
        return whole
    return Shape(whole.width, whole.head_dim, tuple(run["heads"]), tuple(run["neurons"]))
