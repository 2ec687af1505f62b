"""The command line of ``benchmarks/cifar/run.py``."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks.cifar.images.data import SIZES, Dataset, load_dataset, load_digits
from benchmarks.cifar.images.sources import DataError
from benchmarks.cifar.models.networks import check_network
from benchmarks.cifar.options import build_parser
from benchmarks.cifar.protocols.choices import SEARCH
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.tables import ProtocolError
from benchmarks.cifar.records.folder import Folder
from benchmarks.cifar.records.results import ResultsError
from benchmarks.cifar.records.tensorboard import check_tensorboard
from benchmarks.cifar.running.ranks import Ranks, device_for, joined_ranks
from benchmarks.cifar.running.stopping import Stop, StoppedError, stop_on_signals
from benchmarks.cifar.scheduling.planning import Estimator, Size
from benchmarks.cifar.scheduling.worker import Setup
from benchmarks.cifar.selecting import choose_protocols, is_narrowed, parts_of
from benchmarks.cifar.session import Chosen, Means, Plan, Session
from benchmarks.cifar.timing import Conditions, time_jobs
from benchmarks.common.environment import describe_environment, in_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not (options.all or options.studies or is_narrowed(options) or options.report_only):
        parser.error(
            "say --all, or choose with --studies, --methods, --inits, --densities, --seeds"
        )
    with stop_on_signals() as stop, joined_ranks() as ranks:
        try:
            return _run(options, ranks, stop)
        except (DataError, ProtocolError, ResultsError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except StoppedError:
            if ranks.is_first:
                print("\nstopped; the same command goes on from what is saved", file=sys.stderr)
            return stop.exit_status


def _run(options: argparse.Namespace, ranks: Ranks, stop: Stop) -> int:
    folder = Folder(options.out)
    if options.report_only:
        from benchmarks.cifar.report import write_report

        print(f"report: {write_report(folder.results, folder.root)}")
        return 0
    if options.tensorboard:
        check_tensorboard()
    say: Callable[[str], None] = _say if ranks.is_first else lambda text: None
    device = device_for(ranks)
    if options.storage is not None:
        # Takes seconds to import.
        from benchmarks.cifar.tuning.storage import check_database

        check_database(options.storage, connect=not options.dry_run)
    means = _means(options, folder, ranks)
    preset = options.preset or ("paper" if device.type == "cuda" else "cpu")
    protocols = choose_protocols(preset, options)
    chosen, sizes = _with_data(protocols, options, folder, ranks, say)
    plan = Plan(chosen, means)
    plan.show(say)
    estimator = Estimator(sizes, device)
    if options.dry_run or plan.agenda.left or plan.searches:
        say(f"measuring a few steps with {in_words(describe_environment(device, ranks.processes))}")
        # By all processes of torchrun: optimizers agree among them on their masks.
        plan.measure(estimator)
        plan.show_estimates(say)
    if options.dry_run:
        return 0
    conditions = Conditions(
        {protocol: size.classes for protocol, size in sizes.items()}, means.threads, device
    )
    return _carry_out(plan, Session(means, stop), options.storage, conditions, say)


def _carry_out(
    plan: Plan,
    session: Session,
    database: str | None,
    conditions: Conditions,
    say: Callable[[str], None],
) -> int:
    # Optuna, SciPy and Matplotlib take seconds to import, which a plan or --help need not wait for;
    # and not when training ends, because by then the checkout may be at another commit.
    from benchmarks.cifar.report import write_report
    from benchmarks.cifar.tuning import Storage, tune

    forecast = plan.forecast()
    session.run(plan.agenda, forecast)
    errors: list[Exception] = []
    for part in plan.chosen:
        search = part.protocol.choices.search
        if part.search_jobs() and search is not None:
            storage = Storage(plan.means.setup.folder.root, database)
            train = functools.partial(session.train, part, forecast)
            errors += tune(part.protocol, search, part.data, storage, train, session.stop)
    if not plan.means.ranks.is_first:
        return 0
    folder = plan.means.setup.folder
    time_jobs(plan.timing_jobs(), folder, conditions, say, session.stop)
    print(f"report: {write_report(folder.results, folder.root)}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if session.failed:
        names = ", ".join(dict.fromkeys(job.title for job in session.failed))
        print(f"{len(session.failed)} runs failed: {names}", file=sys.stderr)
    return 1 if session.failed or errors else 0


def _means(options: argparse.Namespace, folder: Folder, ranks: Ranks) -> Means:
    if ranks.processes > 1 and (options.workers > 1 or options.cluster):
        raise ProtocolError("torchrun trains one run on all its processes: leave out --workers")
    if options.workers > 1 and options.cluster:
        raise ProtocolError("--workers and --cluster exclude each other")
    threads = options.threads
    together = threads or torch.get_num_threads()
    if options.workers > 1:
        threads = max(1, together // options.workers)
    if threads is not None:
        torch.set_num_threads(threads)
    setup = Setup(folder, options.data_dir, threads, options.tensorboard)
    return Means(setup, options.workers, together, options.cluster, ranks)


def _with_data(
    protocols: Sequence[Protocol],
    options: argparse.Namespace,
    folder: Folder,
    ranks: Ranks,
    say: Callable[[str], None],
) -> tuple[list[Chosen], dict[Protocol, Size]]:
    """The protocols with the fingerprints and sizes of their data."""
    chosen, sizes = [], {}
    for protocol, parts in zip(protocols, parts_of(protocols, options), strict=True):
        if ranks.processes > 1 and SEARCH in parts:
            raise ProtocolError(
                "a search is not for torchrun: leave it out with --studies, or use --workers"
            )
        # The first process decodes, or fails, before the others look for what it has written.
        dataset = _find(protocol, options, folder, say) if ranks.is_first else None
        ranks.wait()
        if not ranks.is_first:
            dataset = _find(protocol, options, folder, say)
        if dataset is None:
            fingerprint, size = "", Size.of(protocol, *SIZES[protocol.dataset])
        else:
            fingerprint, size = dataset.fingerprint(), Size.of_data(protocol, dataset)
        check_network(protocol, size.classes)
        chosen.append(Chosen(protocol, parts, fingerprint, size.classes))
        sizes[protocol] = size
    return chosen, sizes


def _find(
    protocol: Protocol, options: argparse.Namespace, folder: Folder, say: Callable[[str], None]
) -> Dataset | None:
    """The data set; None in a dry run that can do without it."""
    if protocol.dataset == "digits":
        return load_digits()
    is_needed = not options.dry_run or protocol.dataset not in SIZES
    if options.data_dir is None and not is_needed:
        say(f"{protocol.name}: without --data-dir, nothing is known of finished runs")
        return None
    return load_dataset(protocol.dataset, options.data_dir, folder.cache, protocol.image_size)


def _say(text: str) -> None:
    print(text, flush=True)
