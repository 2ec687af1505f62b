"""The command line's options, each with its help."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cifar.protocols.choices import INITS
from benchmarks.cifar.protocols.methods import METHODS
from benchmarks.cifar.protocols.presets import PRESETS, Change, load_protocols, preset_path
from benchmarks.cifar.protocols.tables import ProtocolError

DESCRIPTION = """\
Train networks sparsely on small images by every method of the report, and compare.

Every finished run is appended to DIR/results.jsonl at once. Start the same command again after an
interruption: finished runs are skipped, and the interrupted ones go on where they were saved.
"""


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cifar/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument_group("what to run"))
    _add_data(parser.add_argument_group("data, network and files"))
    _add_how(parser.add_argument_group("how to run it"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--all",
        action="store_true",
        help="everything that the preset lists, its studies and its search included, as far as "
        "--methods, --inits, --densities and --seeds let it; without --preset, 'paper' on a GPU, "
        "else 'cpu'",
    )
    group.add_argument(
        "--preset",
        type=_preset,
        metavar="NAME",
        help=f"one of {', '.join(PRESETS)}, or a .toml file in their form: smoke (digits, minutes, "
        "no download), cpu (real CIFAR-10, reduced, hours), paper (in full, both data sets), "
        "resnet-50 (a few steps of the network for CIFAR-100, no download)",
    )
    group.add_argument(
        "--protocols", nargs="+", metavar="P", help="only these of the preset's protocols, by name"
    )
    group.add_argument(
        "--studies",
        nargs="+",
        metavar="S",
        help="only these parts of the preset: main, search, timing (of networks that other parts "
        "have left), and its studies, by name",
    )
    group.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=_change,
        default=[],
        metavar="SETTING=VALUE",
        help="change a setting of the preset, such as training.epochs=5, or of one of its "
        "protocols, such as paper-cifar100:optimizer.lr=0.05; results then carry the change in "
        "their names",
    )
    group.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="M", help=f"only these of {METHODS}"
    )
    group.add_argument(
        "--inits", nargs="+", choices=INITS, metavar="I", help=f"only these of {INITS}"
    )
    group.add_argument(
        "--densities", nargs="+", type=_density, metavar="D", help="shares of live weights, 0 to 1"
    )
    group.add_argument("--seeds", nargs="+", type=_seed, metavar="S", help="integers from 0 on")


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the images: torchvision's own files of CIFAR-10 or CIFAR-100, class folders of them "
        "under train/ and test/, or any tree of class folders of your own; without it, torchvision "
        "downloads",
    )
    group.add_argument(
        "--model",
        type=_model,
        metavar="MODULE:CALLABLE",
        help="your own network: called with the number of classes, returns a module; 'small-dense' "
        "is run if it also takes width_scale=, a factor on every width",
    )
    group.add_argument(
        "--out",
        type=Path,
        default=Path("results", "cifar"),
        metavar="DIR",
        help="everything that is written goes here (default: %(default)s)",
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="database for the search, if several machines share it (default: a file in --out)",
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="write curves for TensorBoard to DIR/tensorboard"
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


def _preset(text: str) -> str:
    if not preset_path(text).exists() and not text.endswith(".toml"):
        names = ", ".join(map(repr, PRESETS))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names})")
    try:
        load_protocols(text)
    except (OSError, ProtocolError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _change(text: str) -> Change:
    try:
        return Change.parse(text)
    except ProtocolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _model(text: str) -> str:
    module, _, name = text.partition(":")
    if not (module and name):
        raise argparse.ArgumentTypeError(f"a network is given as module:callable, got {text!r}")
    return text


def _density(text: str) -> float:
    try:
        density = float(text)
    except ValueError:
        density = 0.0
    if not 0.0 < density <= 1.0:
        raise argparse.ArgumentTypeError(f"a density is above 0 and at most 1, got {text!r}")
    return density


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a seed is an integer from 0 on, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
