"""Times of training and inference: dense, without dropped neurons and heads, built by hand."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import arguments
from benchmarks.common.environment import describe_environment
from benchmarks.common.formats import precisions_of
from benchmarks.common.units import MILLI
from benchmarks.structured.models import HEAD_DIM, GPTBlocks, Shape, ViT, shape_of
from benchmarks.structured.records import Record, Settings, read_results, refuse_other
from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, compact
from sparseopt.speedup.timing import time_in_turn

Call = Callable[[], Any]

MODELS = ("vit-192", "vit-384", "gpt-384")
TOKENS = 256
#: Images for which a GPT has one sequence.
IMAGES_PER_SEQUENCE = 4
#: Steps between mask updates: so many that there is no update, or an update in every second step.
NEVER = 10**9
EVERY_SECOND = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add(
        "--densities",
        type=arguments.density,
        nargs="+",
        default=[0.5, 0.25, 0.1],
        help="of neurons and heads",
    )
    add(
        "--device",
        type=arguments.device,
        default="cpu",
        help="where to compute (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=arguments.multiple_of(IMAGES_PER_SEQUENCE),
        default=16,
        help="images; a GPT has a quarter as many sequences (default: %(default)s)",
    )
    add("--depth", type=arguments.positive, default=4, help="blocks (default: %(default)s)")
    add(
        "--rounds",
        type=arguments.positive,
        default=7,
        help="rounds that count (default: %(default)s)",
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every model at every density that has no result yet.

    Raises:
        ResultsError: if the folder has times of other options.
    """
    cases = {
        f"time-{model}-{density}-{options.device.type}": (model, density)
        for model in options.models
        for density in options.densities
    }
    asked = {name: getattr(options, name) for name in ("batch_size", "rounds", "depth", "threads")}
    for file, record in read_results(options.out, "time").items():
        refuse_other(file, time_settings(record), asked if file.stem in cases else _shared(asked))
    for name, (model, density) in cases.items():
        if not (options.out / f"{name}.json").exists():
            yield name, Case(model, density, options).times()


def time_settings(record: Record) -> Settings:
    """What the times of a model were measured with."""
    unit = 1 if _is_vit(record["model"]) else IMAGES_PER_SEQUENCE
    return {
        "batch_size": unit * record["batch"],
        "rounds": record["rounds"],
        "depth": record["depth"],
        "threads": record["environment"]["threads"],
    }


def shared_settings(record: Record) -> Settings:
    """What all times of a report must have been measured with."""
    return _shared(time_settings(record))


def _shared(settings: Settings) -> Settings:
    return {name: settings[name] for name in ("depth", "threads")}


class Case:
    """One model at one density, with all models to which it is compared."""

    def __init__(self, name: str, density: float, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.name = name
        self.density = density
        self.options = options
        self.device = options.device
        self.is_vit = _is_vit(name)
        width = int(name.partition("-")[2])
        self.precisions = precisions_of(self.device)
        self.dense_shape = Shape.uniform(options.depth, width, HEAD_DIM)
        batch = options.batch_size
        self.inputs = (
            torch.randn(batch, 3, 32, 32, device=self.device)
            if self.is_vit
            else torch.randn(batch // IMAGES_PER_SEQUENCE, TOKENS, width, device=self.device)
        )
        self.labels = torch.randint(10, (batch,), device=self.device)
        model = self.build(self.dense_shape)
        self.smaller = compact(
            model, self.sparse(model, NEVER), example_inputs=self.inputs[:2]
        ).model
        self.shape = shape_of(self.smaller)

    def build(self, shape: Shape) -> nn.Module:
        """Return a model of these widths on the device."""
        return (ViT(shape) if self.is_vit else GPTBlocks(shape)).to(self.device)

    def sparse(self, model: nn.Module, delta_t: int) -> SparseOptimizer:
        """Return an optimizer that keeps a share of the neurons and of the heads live."""
        return SparseOptimizer(
            _adamw(model),
            model,
            method=RigLStruct(kinds=dict.fromkeys(("neuron", "head"), self.density)),
            example_inputs=self.inputs[:2],
            total_steps=10 * NEVER,
            delta_t=delta_t,
            seed=0,
        )

    def times(self) -> Record:
        """Return the median milliseconds of each contender in each precision."""
        rounds = self.options.rounds
        with contextlib.ExitStack() as stack:
            calls = {
                f"{contender}, {precision}": call
                for precision in self.precisions
                for contender, call in self._trainings(precision, stack).items()
            }
            training = time_in_turn(calls, rounds=rounds, device=self.device)
        calls = {
            f"{contender}, {precision}": _forward(model, self.inputs, precision)
            for precision in self.precisions
            for contender, model in self._models().items()
        }
        with torch.no_grad():
            inference = time_in_turn(calls, rounds=2 * rounds, device=self.device)
        return {
            "model": self.name,
            "density": self.density,
            "depth": self.options.depth,
            "batch": len(self.inputs),
            "rounds": rounds,
            "heads": self.shape.heads,
            "neurons": self.shape.neurons,
            "training": {name: MILLI * time.median for name, time in training.items()},
            "inference": {name: MILLI * time.median for name, time in inference.items()},
            "environment": describe_environment(self.device),
        }

    def _trainings(self, precision: str, stack: contextlib.ExitStack) -> dict[str, Call]:
        dense, by_hand = self.build(self.dense_shape), self.build(self.shape)
        return {
            "dense": self._step(dense, _adamw(dense), precision),
            "compacted": self._compacted(NEVER, precision, stack),
            "compacted pair": _twice(self._compacted(EVERY_SECOND, precision, stack)),
            "by hand": self._step(by_hand, _adamw(by_hand), precision),
        }

    def _compacted(self, delta_t: int, precision: str, stack: contextlib.ExitStack) -> Call:
        model = self.build(self.dense_shape)
        optimizer = self.sparse(model, delta_t)
        stack.enter_context(CompactedTraining(model, optimizer, example_inputs=self.inputs[:2]))
        return self._step(model, optimizer, precision)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str) -> Call:
        def step() -> None:
            optimizer.zero_grad()
            with _autocast(self.device, precision):
                outputs = model(self.inputs)
            loss = (
                F.cross_entropy(outputs.float(), self.labels)
                if self.is_vit
                else outputs.float().square().mean()
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    def _models(self) -> dict[str, nn.Module]:
        return {
            "dense": self.build(self.dense_shape),
            "compacted": self.smaller,
            "by hand": self.build(self.shape),
        }


def _is_vit(name: str) -> bool:
    return name.startswith("vit-")


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _forward(model: nn.Module, inputs: Tensor, precision: str) -> Call:
    dtype = getattr(torch, precision)
    copied, inputs = copy.deepcopy(model).eval().to(dtype), inputs.to(dtype)
    return lambda: copied(inputs)


def _twice(call: Call) -> Call:
    def both() -> None:
        call()
        call()

    return both
