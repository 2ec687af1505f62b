"""All cases one after another, each written to the results file when it ends."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common.environment import describe_environment
from benchmarks.overhead import profiling, steps, training
from benchmarks.overhead.case import Case
from benchmarks.overhead.peers import PEERS
from benchmarks.overhead.results import Results

_MEASURES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "steps": steps.measure,
    "training": training.measure,
    "profile": profiling.measure,
}


def run(cases: Sequence[Case], figures: Iterable[str], path: Path) -> None:
    """Measure all figures of all cases and write ``path``, the results file, after every entry."""
    results = Results(path)
    asked = {name for case in cases for name in case.contenders}
    for name, peer in PEERS.items():
        if name in asked:
            results.peers[name] = {"version": peer.version(), "absent": peer.absent()}
    todo = [
        (case, kind)
        for case, kind in itertools.product(cases, figures)
        if kind != "training" or case.about.make_batch is not None
    ]
    with tqdm(todo, unit="entry") as bar:
        for case, kind in bar:
            place = {key: getattr(case, key) for key in ("workload", "density", "optimizer")}
            bar.set_description(" ".join(map(str, (*place.values(), kind))))
            figure = _MEASURES[kind](case)
            results.put({"figures": kind, **place, **figure, "made_with": _made_with(case)})


def _made_with(case: Case) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rounds": case.repeated(case.rounds),
        "update_every": case.update_every,
        "training_rounds": case.repeated(case.training_rounds),
        **describe_environment(case.device),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
