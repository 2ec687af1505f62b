"""The command line's options, each with its help, and the protocols that they choose."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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

#: Flag, how it is parsed, what it is called, and its help.
LISTS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "--protocols": (str, "P", "only these of the preset's protocols, by name"),
    "--studies": (
        str,
        "S",
        "only these parts of the preset: main, search, timing (of networks that other parts have "
        "left), and its studies, by name",
    ),
    "--methods": (str, "M", f"only these of {', '.join(RECIPES)}, or of your own"),
    "--inits": (str, "I", f"only these of {', '.join(INITS)}, or of your own"),
    "--densities": (float, "D", "shares of live weights, above 0 and at most 1"),
    "--seeds": (int, "S", "integers from 0 on"),
    "--import": (
        str,
        "MODULE",
        "modules of yours that register methods, or add to benchmarks.cifar.methods.INITS",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cifar/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--all",
        action="store_true",
        help="everything that the preset lists, its studies and its search included, as far as "
        "--methods, --inits, --densities and --seeds let it; without --preset, 'paper' on a GPU, "
        "else 'cpu'",
    )
    what.add_argument(
        "--preset",
        metavar="NAME",
        help=f"one of {', '.join(PRESETS)}, or a .toml file in their form: smoke (digits, minutes, "
        "no download), cpu (real CIFAR-10, reduced, hours), paper (in full, both data sets), "
        "resnet-50 (a few steps of the network for CIFAR-100, no download)",
    )
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SETTING=VALUE",
        help="change a setting of the preset, such as training.epochs=5, or of one of its "
        "protocols, such as paper-cifar100:optimizer.lr=0.05; results then carry the change in "
        "their names",
    )
    for flag, (kind, metavar, words) in LISTS.items():
        what.add_argument(flag, nargs="+", type=kind, metavar=metavar, help=words)
    _add_files(parser.add_argument_group("data and files"))
    _add_how(parser.add_argument_group("how to run it"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the images: torchvision's own files of CIFAR-10 or CIFAR-100, or class folders of "
        "them under train/ and test/; without it, torchvision downloads",
    )
    group.add_argument(
        "--out",
        type=Path,
        default=Path("results", "cifar"),
        metavar="DIR",
        help="everything that is written goes here (default: %(default)s)",
    )


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="processes that train a run each, sharing the CPU threads (default: %(default)s)",
    )
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Ray cluster instead, of which --threads CPUs a run; 'local' is this machine",
    )
    group.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads of all workers together, or of one run of a cluster (default: torch's "
        "choice)",
    )
    group.add_argument(
        "--dry-run",
        "--plan",
        action="store_true",
        help="print runs, steps, time by a short calibration, and bytes, and run nothing; needs no "
        "data",
    )
    group.add_argument(
        "--report-only", action="store_true", help="rebuild the report from DIR/results.jsonl"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


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
