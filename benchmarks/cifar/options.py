"""The command line's options, each with its help, and the protocols that they choose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import MAIN, SEARCH, Choices, Study
from benchmarks.cifar.methods import INITS, RECIPES
from benchmarks.cifar.preset_files import PRESETS, Change, load_protocols
from benchmarks.cifar.settings import ProtocolError, build, meant

DESCRIPTION = """\
Train networks sparsely on small images by every method of the report, and compare.

Every finished run is appended to DIR/results.jsonl at once. Start the same command again after an
interruption: finished runs are skipped, and the interrupted ones go on where they were saved.
"""
NARROWING = ("methods", "inits", "densities", "seeds")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


#: By group: each option, what it takes, and its help.
OPTIONS: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "what to run": {
        "--all": (
            {"action": "store_true"},
            "everything that the preset lists, its studies and its search included, as far as "
            "--methods, --inits, --densities and --seeds let it; without --preset, 'paper' on a "
            "GPU, else 'cpu'",
        ),
        "--preset": (
            {"metavar": "NAME"},
            f"one of {', '.join(PRESETS)}, or a .toml file in their form: smoke (digits, minutes, "
            "no download), cpu (real CIFAR-10, reduced, hours), paper (in full, both data sets), "
            "resnet-50 (a few steps of the network for CIFAR-100, no download)",
        ),
        "--set": (
            {"nargs": "+", "action": "extend", "default": [], "metavar": "SETTING=VALUE"},
            "change a setting of the preset, such as training.epochs=5, or of one of its "
            "protocols, such as paper-cifar100:optimizer.lr=0.05; results then carry the change in "
            "their names",
        ),
        "--protocols": (
            {"nargs": "+", "metavar": "P"},
            "only these of the preset's protocols, by name",
        ),
        "--studies": (
            {"nargs": "+", "metavar": "S"},
            "only these parts of the preset: main, search, timing (of networks that other parts "
            "have left), and its studies, by name",
        ),
        "--methods": (
            {"nargs": "+", "metavar": "M"},
            f"only these of {', '.join(RECIPES)}, or of your own",
        ),
        "--inits": (
            {"nargs": "+", "metavar": "I"},
            f"only these of {', '.join(INITS)}, or of your own",
        ),
        "--densities": (
            {"nargs": "+", "type": float, "metavar": "D"},
            "shares of live weights, above 0 and at most 1",
        ),
        "--seeds": ({"nargs": "+", "type": int, "metavar": "S"}, "integers from 0 on"),
        "--import": (
            {"nargs": "+", "metavar": "MODULE", "default": [], "dest": "imports"},
            "modules of yours that register methods, or add to benchmarks.cifar.methods.INITS",
        ),
    },
    "data and files": {
        "--data-dir": (
            {"type": Path, "metavar": "DIR"},
            "the images: torchvision's own files of CIFAR-10 or CIFAR-100, or class folders of "
            "them under train/ and test/; without it, torchvision downloads",
        ),
        "--out": (
            {"type": Path, "metavar": "DIR", "default": Path("results", "cifar")},
            "everything that is written goes here (default: %(default)s)",
        ),
    },
    "how to run it": {
        "--workers": (
            {"type": _positive, "default": 1, "metavar": "N"},
            "processes that train a run each, sharing the CPU threads (default: %(default)s)",
        ),
        "--cluster": (
            {"metavar": "ADDRESS"},
            "run on a Ray cluster instead, of which --threads CPUs a run; 'local' is this machine",
        ),
        "--threads": (
            {"type": _positive, "metavar": "N"},
            "CPU threads of all workers together, or of one run of a cluster (default: torch's "
            "choice)",
        ),
        "--dry-run --plan": (
            {"action": "store_true"},
            "print runs, steps, time by a short calibration, and bytes, and run nothing; needs no "
            "data",
        ),
        "--report-only": ({"action": "store_true"}, "rebuild the report from DIR/results.jsonl"),
    },
}


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cifar/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for heading, options in OPTIONS.items():
        group = parser.add_argument_group(heading)
        for flag, (named, words) in options.items():
            group.add_argument(*flag.split(), help=words, **named)
    return parser


def is_narrowed(options: argparse.Namespace) -> bool:
    """Whether methods, inits, densities or seeds are given."""
    return any(getattr(options, name) for name in NARROWING)


def choose_protocols(preset: str, options: argparse.Namespace) -> list[Protocol]:
    """The protocols to run, with all changes that the command line makes.

    Raises:
        ProtocolError: If one or a setting is not known.
    """
    changes = [Change.parse(text) for text in options.set]
    protocols = load_protocols(preset, changes)
    # A changed protocol is still called by its file's name.
    by_name = {protocol.name.split(" with ")[0]: protocol for protocol in protocols}
    for name in options.protocols or ():
        if name not in by_name:
            raise ProtocolError(f"--protocols {name}: {preset} has none; {meant(name, by_name)}")
    chosen = dict.fromkeys(options.protocols or by_name)
    return [_narrowed(by_name[name], options) for name in chosen]


def parts_of(protocols: Sequence[Protocol], options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Which parts of each protocol are to be done.

    A search is left out if it is of a method that is not among those given.

    Raises:
        ProtocolError: If no protocol has a part that was asked for, or if nothing is left to do.
    """
    if options.studies is None:
        everything = options.all or not is_narrowed(options)
        asked = [p.choices.parts if everything else (MAIN,) for p in protocols]
    else:
        known = list(dict.fromkeys(part for p in protocols for part in p.choices.parts))
        for name in options.studies:
            if name not in known:
                raise ProtocolError(f"--studies {name}: there is none; {meant(name, known)}")
        asked = [tuple(p for p in q.choices.parts if p in options.studies) for q in protocols]
    parts = []
    for protocol, names in zip(protocols, asked, strict=True):
        search = protocol.choices.search
        others = search is not None and options.methods and search.method not in options.methods
        parts.append(tuple(name for name in names if not (others and name == SEARCH)))
    if any(asked) and not any(parts):
        methods = " ".join(options.methods)
        raise ProtocolError(
            f"--studies {SEARCH} is a search for a method that is not among --methods {methods}"
        )
    return parts


def _narrowed(protocol: Protocol, options: argparse.Namespace) -> Protocol:
    given = {
        name: list(dict.fromkeys(getattr(options, name)))
        for name in NARROWING
        if getattr(options, name)
    }
    table = protocol.choices.model_dump() | given
    for study, plain in zip(table["studies"], protocol.choices.studies, strict=True):
        study.update(given, methods=_methods_of(plain, options))
    if table["search"] is not None:
        table["search"] |= {name: given[name] for name in given if name != "methods"}
    try:
        return protocol.model_copy(update={"choices": build(Choices, table)})
    except ProtocolError as error:
        raise ProtocolError(f"--{error}") from None


def _methods_of(study: Study, options: argparse.Namespace) -> list[str]:
    given = list(dict.fromkeys(options.methods or study.methods))
    if options.studies is not None:
        return given
    # With --all, a study is not to grow by methods that have nothing to do with it.
    return [method for method in given if method in study.methods]
