"""The options of the command line with their help, and the protocols that they choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.cifar.config import PRESETS, Protocol, load_protocols
from benchmarks.cifar.grid import MAIN, Choices
from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.settings import ProtocolError, build, meant
from benchmarks.common.arguments import positive
from sparseopt import available_distributions

DESCRIPTION = """\
Train networks sparsely on small images by every method of the report, and compare.

Every finished run is appended to DIR/results.jsonl at once. Start the same command again after an
interruption: finished runs are skipped, and interrupted runs continue from their saved state.
"""
ALL = (
    "everything that the preset lists, its studies and its search included, limited to the given "
    "--methods, --inits, --densities and --seeds; without --preset, 'paper' on a GPU, else 'cpu'"
)
PRESET = (
    f"one of {', '.join(PRESETS)}, or a .toml file of the same form: smoke (digits, minutes, no "
    "download), cpu (real CIFAR-10, reduced, hours), tenth (the report's network for a tenth of "
    "its training, days), full (one RigL run of the full training in bf16), paper (all of it, both "
    "data sets), resnet-50 (a few steps of the network for CIFAR-100, no download)"
)
SET = (
    "change a setting of the preset, such as training.epochs=5; results then carry the change in "
    "their names; also=[] leaves out the preset's other protocols"
)
STUDIES = (
    "only these parts of the preset: main, search, timing (of networks that other parts have "
    "trained), and its studies, by name"
)
IMPORT = "your modules that register methods or distributions"
DATA_DIR = (
    "the images: torchvision's own files of CIFAR-10 or CIFAR-100, or class folders of them under "
    "train/ and test/; without it, torchvision downloads"
)
OUT = "the folder for all files (default: %(default)s)"
WORKERS = "processes that train one run each and share the CPU threads (default: %(default)s)"
CLUSTER = "run on a Ray cluster, with --threads CPUs for each run; 'local' is this machine"
THREADS = "CPU threads of all workers together, or of each run on a cluster (default: torch's)"
DRY_RUN = "print runs, steps and an estimated time, without training; needs no data"
CUDA_GRAPHS = (
    "replay forward and backward passes as a CUDA graph, several times faster if the GPU waits "
    "for Python; not for methods that act in the forward pass"
)
NARROWING = ("methods", "inits", "densities", "seeds")


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cifar/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    several: dict[str, Any] = {"nargs": "+"}
    what = parser.add_argument_group("what to run").add_argument
    what("--all", action="store_true", help=ALL)
    what("--preset", metavar="NAME", help=PRESET)
    what("--set", metavar="SETTING=VALUE", action="extend", default=[], **several, help=SET)
    what("--studies", metavar="S", **several, help=STUDIES)
    what("--methods", metavar="M", **several, help=f"of {', '.join(RECIPES)}, or your own")
    inits = ", ".join(available_distributions())
    what("--inits", metavar="I", **several, help=f"of {inits}, or your own")
    what("--densities", metavar="D", type=float, **several, help="above 0 and at most 1")
    what("--seeds", metavar="S", type=int, **several, help="integers of at least 0")
    what("--import", metavar="MODULE", dest="imports", default=[], **several, help=IMPORT)
    files = parser.add_argument_group("data and files").add_argument
    files("--data-dir", metavar="DIR", type=Path, help=DATA_DIR)
    files("--out", metavar="DIR", type=Path, default=Path("results", "cifar"), help=OUT)
    group = parser.add_argument_group("how to run it")
    where = group.add_mutually_exclusive_group().add_argument
    where("--workers", metavar="N", type=positive, default=1, help=WORKERS)
    where("--cluster", metavar="ADDRESS", help=CLUSTER)
    how = group.add_argument
    how("--threads", metavar="N", type=positive, help=THREADS)
    how("--cuda-graphs", action="store_true", help=CUDA_GRAPHS)
    how("--dry-run", action="store_true", help=DRY_RUN)
    how("--report-only", action="store_true", help="rebuild the report from DIR/results.jsonl")
    return parser


def is_narrowed(options: argparse.Namespace) -> bool:
    """Whether methods, inits, densities or seeds are given."""
    return any(getattr(options, name) for name in NARROWING)


def choose(preset: str, options: argparse.Namespace) -> list[tuple[Protocol, tuple[str, ...]]]:
    """The protocols after the changes of the command line, and the parts of each to run."""
    protocols = [_narrowed(one, options) for one in load_protocols(preset, options.set)]
    known = list(dict.fromkeys(part for one in protocols for part in one.choices.parts))
    for name in options.studies or ():
        if name not in known:
            raise ProtocolError(f"--studies {name}: there is no such study; {meant(name, known)}")
    everything = options.all or not is_narrowed(options)
    asked = options.studies or (known if everything else [MAIN])
    return [(one, tuple(part for part in one.choices.parts if part in asked)) for one in protocols]


def _narrowed(protocol: Protocol, options: argparse.Namespace) -> Protocol:
    """A protocol with only the given methods, inits, densities and seeds."""
    given = {
        name: list(dict.fromkeys(getattr(options, name)))
        for name in NARROWING
        if getattr(options, name)
    }
    choices = protocol.choices.model_dump() | given
    methods = given.pop("methods", None)
    for study in choices["studies"]:
        # A study keeps to its own methods.
        own = [method for method in methods or study["methods"] if method in study["methods"]]
        study.update(given, methods=own)
    search = choices["search"]
    if search is not None:
        is_left = methods is None or search["method"] in methods
        choices["search"] = search | given if is_left else None
    try:
        return protocol.model_copy(update={"choices": build(Choices, choices)})
    except ProtocolError as error:
        raise ProtocolError(f"--{error}") from None
