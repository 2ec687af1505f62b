"""The command line of ``benchmarks/cifar/run.py``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cifar.batches import make_splits
from benchmarks.cifar.choices import INITS, Choices, expand
from benchmarks.cifar.data import DataError, Dataset, load_dataset
from benchmarks.cifar.methods import METHODS
from benchmarks.cifar.protocol import PRESETS, Protocol, load_preset
from benchmarks.cifar.report import write_report
from benchmarks.cifar.results import ResultsError
from benchmarks.cifar.session import Folder, Session
from benchmarks.cifar.tables import ProtocolError
from benchmarks.cifar.training import Splits

DESCRIPTION = """\
Train WRNs sparsely on CIFAR-10 by every method and compare the accuracies.

Every finished run is appended to DIR/results.jsonl at once. Start the same command again after an
interruption: finished runs are skipped, and the interrupted one resumes from its last epoch.
"""


def build_parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/cifar/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="run everything that the preset lists; without --preset, 'paper' on a GPU, else 'cpu'",
    )
    parser.add_argument(
        "--preset",
        type=_preset,
        metavar="NAME",
        help=f"the protocol, one of {', '.join(PRESETS)}, or a .toml file in their form: smoke "
        "(digits, minutes, no download), cpu (real CIFAR-10, reduced, hours), paper (in full)",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, metavar="M", help=f"only these of {METHODS}"
    )
    parser.add_argument(
        "--inits", nargs="+", choices=INITS, metavar="I", help=f"only these of {INITS}"
    )
    parser.add_argument(
        "--densities", nargs="+", type=_density, metavar="D", help="shares of live weights, 0 to 1"
    )
    parser.add_argument("--seeds", nargs="+", type=_seed, metavar="S", help="integers from 0 on")
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="CIFAR-10: a folder with torchvision's cifar-10-batches-py, or with class folders "
        "under train/ and test/; without it, torchvision downloads CIFAR-10",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results", "cifar"),
        metavar="DIR",
        help="everything that is written goes here (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads (default: torch's choice)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the plan and its estimate, and run nothing"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="rebuild the report from DIR/results.jsonl"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    narrowed = any((options.methods, options.inits, options.densities, options.seeds))
    if not (options.all or narrowed or options.report_only):
        parser.error("say --all, or choose with --methods, --inits, --densities, --seeds")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        return _run(options)
    except (DataError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    folder = Folder(options.out)
    if options.report_only:
        print(f"report: {write_report(folder.results, folder.root)}")
        return 0
    # Resumed runs are to be bit-identical, on a GPU too.
    torch.backends.cudnn.deterministic = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    protocol = options.preset or load_preset("paper" if device.type == "cuda" else "cpu")
    specs = expand(_choices(protocol.choices, options))
    dataset = load_dataset(protocol.dataset, options.data_dir, options.out / "cache")
    splits = _splits(dataset, protocol, device)
    session = Session(protocol, specs, splits, dataset.fingerprint(), folder)
    estimates = session.print_plan()
    if options.plan:
        return 0
    failed = session.run_all(estimates)
    print(f"report: {write_report(folder.results, folder.root)}")
    if failed:
        names = ", ".join(spec.label for spec in failed)
        print(f"{len(failed)} runs failed: {names}", file=sys.stderr)
    return 1 if failed else 0


def _choices(preset: Choices, options: argparse.Namespace) -> Choices:
    chosen = {
        name: tuple(dict.fromkeys(getattr(options, name)))
        for name in ("methods", "inits", "densities", "seeds")
        if getattr(options, name)
    }
    return dataclasses.replace(preset, **chosen)


def _splits(dataset: Dataset, protocol: Protocol, device: torch.device) -> Splits:
    train, validation, test = make_splits(
        dataset,
        protocol.training.validation_fraction,
        protocol.augmentation,
        device,
        channels_last=protocol.training.channels_last,
    )
    return Splits(train, validation, test, dataset.num_classes)


def _preset(text: str) -> Protocol:
    if text not in PRESETS and not text.endswith(".toml"):
        names = ", ".join(map(repr, PRESETS))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names})")
    try:
        return load_preset(text)
    except (OSError, ProtocolError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of threads is at least 1, got {text!r}")
    return int(text)
