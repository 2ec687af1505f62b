"""The command line of ``benchmarks/cifar/run.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import SIZES, DataError, load_dataset
from benchmarks.cifar.grid import SEARCH, RunSpec
from benchmarks.cifar.jobs import Agenda
from benchmarks.cifar.options import build_parser, choose_protocols, is_narrowed, parts_of
from benchmarks.cifar.plan import Estimator, Part, Plan
from benchmarks.cifar.pools import open_pool
from benchmarks.cifar.records import Folder, Record, ResultsError, read_results
from benchmarks.cifar.session import Display, Session
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.stopping import Stop, StoppedError, stop_on_signals
from benchmarks.cifar.timing import time_jobs
from benchmarks.cifar.worker import Setup, import_modules
from benchmarks.common.environment import describe_environment, in_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not (options.all or options.studies or is_narrowed(options) or options.report_only):
        parser.error(
            "say --all, or choose with --studies, --methods, --inits, --densities, --seeds"
        )
    with stop_on_signals() as stop:
        try:
            return _run(options, stop)
        except (DataError, ProtocolError, ResultsError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except StoppedError:
            print("\nstopped; the same command goes on from what is saved", file=sys.stderr)
            return stop.exit_status


def _run(options: argparse.Namespace, stop: Stop) -> int:
    folder = Folder(options.out)
    if options.report_only:
        return _write_report(folder)
    if options.workers > 1 and options.cluster:
        raise ProtocolError("--workers and --cluster exclude each other: leave one out")
    import_modules(options.imports)
    together = options.threads or torch.get_num_threads()
    threads = max(1, together // options.workers) if options.workers > 1 else options.threads
    torch.set_num_threads(threads or together)
    setup = Setup(folder, options.data_dir, threads, imports=tuple(options.imports))
    preset = options.preset or ("paper" if setup.chosen_device().type == "cuda" else "cpu")
    protocols = choose_protocols(preset, options)
    parts = [
        _part(protocol, names, options, folder)
        for protocol, names in zip(protocols, parts_of(protocols, options), strict=True)
    ]
    plan = Plan(parts, folder, options.workers)
    plan.show(_say)
    if options.dry_run or plan.agenda.left or plan.searches:
        environment = describe_environment(setup.chosen_device())
        _say(f"measuring a few steps with {in_words(environment)}")
        plan.measure(Estimator(parts, setup.chosen_device()), _say)
    if options.dry_run:
        return 0
    return _carry_out(plan, setup, options, together, stop)


def _carry_out(
    plan: Plan, setup: Setup, options: argparse.Namespace, threads: int, stop: Stop
) -> int:
    display = Display({key: estimate.seconds for key, estimate in plan.estimates.items()})
    errors: list[Exception] = []
    with open_pool(setup, options.workers, options.cluster, stop, display.watch) as pool:
        session = Session(pool, display, stop)
        session.run(plan.agenda)
        for part in plan.parts:
            if SEARCH in part.parts:
                errors += _search(part, session, setup.folder)
    conditions = {part.protocol: part.classes for part in plan.parts}
    time_jobs(plan.timing_jobs, setup, conditions, threads, _say, stop)
    _write_report(setup.folder)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if session.failed:
        names = ", ".join(dict.fromkeys(job.title for job in session.failed))
        print(f"{len(session.failed)} runs failed: {names}", file=sys.stderr)
    return 1 if session.failed or errors else 0


def _search(part: Part, session: Session, folder: Folder) -> Sequence[Exception]:
    # Optuna takes seconds to import, which a plan or --help need not wait for.
    from benchmarks.cifar.search import tune, tunings

    def train(specs: Sequence[RunSpec]) -> Mapping[RunSpec, Record]:
        jobs = {spec: part.job(spec) for spec in specs}
        session.run(Agenda(list(jobs.values()), folder))
        records = {record["key"]: record for record in read_results(folder.results)}
        return {spec: records[job.key] for spec, job in jobs.items() if job.key in records}

    return tune(tunings(part.protocol, part.data), folder, train, session.stop)


def _part(
    protocol: Protocol, names: tuple[str, ...], options: argparse.Namespace, folder: Folder
) -> Part:
    """The protocol with what is known of its data, without which a dry run can do."""
    if options.dry_run and options.data_dir is None and protocol.dataset in SIZES:
        _say(f"{protocol.name}: without --data-dir, nothing is known of finished runs")
        return Part(protocol, names, "", *SIZES[protocol.dataset])
    dataset = load_dataset(protocol.dataset, options.data_dir, folder.cache)
    images, test = len(dataset.train_labels), len(dataset.test_labels)
    return Part(protocol, names, dataset.fingerprint(), images, test, dataset.num_classes)


def _write_report(folder: Folder) -> int:
    # Matplotlib and SciPy take seconds to import.
    from benchmarks.cifar.report import write_report

    print(f"report: {write_report(folder.results, folder.root)}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
