"""The command line of ``benchmarks/cifar/run.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

import torch

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import CIFARS, TRAINING_IMAGES, DataError, load_dataset
from benchmarks.cifar.grid import SEARCH, RunSpec
from benchmarks.cifar.options import build_parser, choose, is_narrowed
from benchmarks.cifar.plan import Agenda, Part, Plan
from benchmarks.cifar.pools import Session, open_pool
from benchmarks.cifar.records import Folder, Record, ResultsError, read_results
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.timing import time_jobs
from benchmarks.cifar.worker import Setup, import_modules


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not (options.all or options.studies or is_narrowed(options) or options.report_only):
        parser.error("give --all, or choose by --studies, --methods, --inits, --densities, --seeds")
    try:
        return _run(options)
    except (DataError, ProtocolError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the saved state", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    folder = Folder(options.out)
    if options.report_only:
        return _write_report(folder)
    import_modules(options.imports)
    together = options.threads or torch.get_num_threads()
    threads = max(1, together // options.workers) if options.workers > 1 else options.threads
    torch.set_num_threads(threads or together)
    setup = Setup(
        folder, options.data_dir, threads, tuple(options.imports), cuda_graphs=options.cuda_graphs
    )
    if options.cuda_graphs and setup.device.type != "cuda":
        raise ProtocolError("--cuda-graphs needs an NVIDIA GPU, but this machine has none")
    preset = options.preset or ("paper" if setup.device.type == "cuda" else "cpu")
    plan = Plan([_part(*chosen, options, folder) for chosen in choose(preset, options)], folder)
    plan.show()
    if options.dry_run:
        plan.measure(setup.device)
        return 0
    return _carry_out(plan, setup, options, together)


def _carry_out(plan: Plan, setup: Setup, options: argparse.Namespace, threads: int) -> int:
    errors: list[Exception] = []
    with closing(open_pool(setup, options.workers, options.cluster)) as pool:
        session = Session(pool)
        session.run(plan.agenda)
        for part in plan.parts:
            if SEARCH in part.parts:
                errors += _search(part, session, setup.folder)
    time_jobs(plan.timing_jobs, setup, threads)
    _write_report(setup.folder)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if session.failed:
        names = ", ".join(dict.fromkeys(job.title for job in session.failed))
        print(f"{len(session.failed)} runs failed: {names}", file=sys.stderr)
    return 1 if session.failed or errors else 0


def _search(part: Part, session: Session, folder: Folder) -> Sequence[Exception]:
    # Optuna takes seconds to import, and a plan or --help does not need it.
    from benchmarks.cifar.search import tune, tunings

    def train(specs: Sequence[RunSpec]) -> Mapping[RunSpec, Record]:
        jobs = {spec: part.job(spec) for spec in specs}
        session.run(Agenda(list(jobs.values()), folder))
        records = {record["key"]: record for record in read_results(folder.results)}
        return {spec: records[job.key] for spec, job in jobs.items() if job.key in records}

    return tune(tunings(part.protocol, part.data), folder, train)


def _part(
    protocol: Protocol, names: tuple[str, ...], options: argparse.Namespace, folder: Folder
) -> Part:
    """The protocol with the facts about its data, if they are known; a dry run needs no data."""
    if options.dry_run and options.data_dir is None and protocol.dataset in CIFARS:
        print(f"{protocol.name}: without --data-dir, finished runs are not known")
        return Part(protocol, names, "", TRAINING_IMAGES)
    dataset = load_dataset(protocol.dataset, options.data_dir, folder.cache)
    return Part(protocol, names, dataset.fingerprint(), len(dataset.train_labels))


def _write_report(folder: Folder) -> int:
    # Matplotlib and SciPy take seconds to import.
    from benchmarks.cifar.report import write_report

    print(f"report: {write_report(folder.results, folder.root)}")
    return 0
