"""``report.md`` and its plot, made from the results file only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.environment import in_words, measured_on
from benchmarks.common.figures import save
from benchmarks.common.files import write_atomic
from benchmarks.common.tables import MISSING, paragraph, section, table_of
from benchmarks.common.words import counted
from benchmarks.overhead.contenders import REFERENCE
from benchmarks.overhead.peers import INSTALL, NOT_DRIVEN, PEERS
from benchmarks.overhead.plots import cost_figure
from benchmarks.overhead.results import Entry, Results, threads
from benchmarks.overhead.tables import (
    USUAL_DELTA_T,
    byte_table,
    processor,
    profile_table,
    time_table,
    training_table,
)
from benchmarks.overhead.workloads import WORKLOADS

REPORT = "report.md"
PLOT = "cost"
EXPLANATIONS = f"""\
All contenders step in turn in one process, in a new random order each round. A ratio compares \
two times of the same round; the tables show its median and [quartiles]. `plain` is the optimizer \
alone. `plain, again` is a second copy of it: the distance of its ratio from 1 shows which \
differences are too small to measure. `sparseopt` is `SparseOptimizer(..., method="rigl", \
init="erk")`, with its `state=`.

- *step*: the optimizer's step without a mask update, with all other calls that a library \
requires.
- *masking*: masks applied to weights before the forward pass, and gradients masked in the \
backward pass, as a multiple of plain `step()`. The same work of plain, and the passes \
themselves, are subtracted.
- *update*: the same as *step* with a mask update, and how many updates were timed; also as a \
multiple of a plain `{REFERENCE}` step on the same model.
- *mean*: step, masking and update together, with one update in {USUAL_DELTA_T} steps, as a \
multiple of plain `step()`; computed from the medians.
- *density*: live weights in convolutions and linear layers, counted at the end. *moved*: share \
of the live weights that were not live before the timed updates.
- *state*: tensors in `optimizer.state`. *masks*: tensors of bools or bytes, including the record \
of explored weights, and masks of another type. *index*: integers that say which weights are \
live. *other*: everything else, such as dense gradients that are kept. All of them are found by \
following references from the optimizer, the model and their objects; weights and gradients \
themselves are not counted.
- *with masking*: the time of `step()` beyond plain's, and masking as in the first table, as a \
share of plain's full training step, if both were measured on the same processor.
- *share of the time*: share of the time of all threads that torch's profiler saw; the profiler \
slows the code that it profiles. The table has the operators that take most time, without the \
operators that they call.
"""


def write_report(path: Path) -> list[Path]:
    """Write the report and the plot beside the results file ``path``; return their paths."""
    results = Results(path)
    lines, written = ["# Time and memory: all measurements", "", EXPLANATIONS], []
    figure = cost_figure(results)
    if figure is not None:
        save(figure, path.with_name(PLOT), formats=["svg"])
        written.append(path.with_name(f"{PLOT}.svg"))
        lines += paragraph(f"![Time of a step and bytes held, by contender]({PLOT}.svg)")
    lines += ["## Who takes part", "", *_peer_table(results)]
    for workload, density in results.groups():
        lines += _group(results, workload, density)
    lines += ["## Made with", "", *_made_with(results), ""]
    report = path.with_name(REPORT)
    write_atomic(report, "\n".join(lines).encode())
    return [*written, report]


def _peer_table(results: Results) -> list[str]:
    rows = []
    for name, peer in PEERS.items():
        known = results.peers.get(name, {"version": None, "absent": "not asked for"})
        rows.append(
            {
                "library": name,
                "version": known["version"] or MISSING,
                "what it does here": peer.does,
                "what it cannot do": peer.cannot,
                "state": known["absent"] or "here",
            }
        )
    return [*table_of(rows), *paragraph(f"Others are installed with `{INSTALL}`. {NOT_DRIVEN}")]


def _group(results: Results, workload: str, density: float) -> list[str]:
    steps, training, profiles = (
        results.of(figures, workload, density) for figures in ("steps", "training", "profile")
    )
    lines = [f"## {WORKLOADS[workload].title}, density {density:g}", ""]
    if steps:
        size = f"{steps[0]['parameters']:,} parameters in {steps[0]['tensors']} tensors."
        lines += paragraph(size)
    sample = WORKLOADS[workload].sample
    lines += section("The optimizer alone", _measured_on(steps), time_table(steps))
    lines += section("Bytes between steps", byte_table(steps))
    lines += section(
        f"Full training step, {sample}",
        _measured_on(training),
        training_table(training, steps),
    )
    lines += section("Where the time goes", _measured_on(profiles), profile_table(profiles))
    return [*lines, *_absent([*steps, *training])]


def _measured_on(entries: Sequence[Entry]) -> list[str]:
    counts = {threads(entry) for entry in entries}
    return measured_on(
        (
            entry["optimizer"] + f" ({counted(threads(entry), 'thread')})" * (len(counts) > 1),
            processor(entry),
        )
        for entry in entries
    )


def _absent(entries: Sequence[Entry]) -> list[str]:
    reasons = [f"- {name}: {why}" for entry in entries for name, why in entry["absent"].items()]
    return ["Not in these tables:", "", *dict.fromkeys(reasons), ""] if reasons else []


def _made_with(results: Results) -> list[str]:
    """One line for each environment in which figures were measured."""
    lines = []
    for about in (entry["made_with"] for entry in results.entries):
        day = about["date"].partition("T")[0]
        lines.append(
            f"- {day}: {in_words(about)}; {about['cores']} cores, OMP_WAIT_POLICY="
            f"{about['omp_wait_policy']}; {about['system']}; kernels: "
            f"{about.get('kernels', 'not used by steps yet')}; {about['rounds']} rounds of steps, "
            f"masks moving every {about['update_every']}; {about['training_rounds']} of training "
            "steps"
        )
    return sorted(set(lines))
