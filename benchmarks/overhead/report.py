"""``report.md``, ``summary.md``, ``why.md`` and the plot, made from the results file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.files import write_atomic
from benchmarks.overhead.contenders import OURS, REFERENCE
from benchmarks.overhead.peers.registry import INSTALL, PEERS
from benchmarks.overhead.plots import draw
from benchmarks.overhead.profile_tables import WHERE, profile_lines, why_lines
from benchmarks.overhead.results import Entry, Results
from benchmarks.overhead.tables import (
    USUAL_DELTA_T,
    byte_table,
    extras_table,
    holder_table,
    measured_on,
    table,
    time_table,
    training_table,
)
from benchmarks.overhead.targets import targets
from benchmarks.overhead.workloads import WORKLOADS

REPORT = "report.md"
SUMMARY = "summary.md"
WHY = "why.md"
PLOT = "cost.svg"
QUICK = "**A quick run with tiny models: it says nothing about speed.**"
MET = {True: "yes", False: "**no**", None: ""}


def write_reports(path: Path) -> list[Path]:
    """Read the results file ``path``, and write the reports and the plot beside it.

    Returns:
        The files that were written.
    """
    results = Results(path)
    written = []
    drawn = draw(results, path.with_name(PLOT))
    if drawn:
        written.append(path.with_name(PLOT))
    for name, lines in (
        (SUMMARY, summary_lines(results, drawn)),
        (WHY, [*([QUICK, ""] if results.quick else []), *why_lines(results)]),
        (REPORT, report_lines(results)),
    ):
        write_atomic(path.with_name(name), ("\n".join(lines) + "\n").encode())
        written.append(path.with_name(name))
    return written


def summary_lines(results: Results, drawn: bool) -> list[str]:
    """What was asked for and what was measured, the plot, and with what."""
    rows = [[row.cost, row.bound, row.found, MET[row.met]] for row in targets(results)]
    lines = [QUICK, ""] if results.quick else []
    lines += table(["cost, x plain", "asked for", "measured", "met"], rows)
    if drawn:
        lines += ["", f"![Time of a step and bytes held, by contender]({PLOT})"]
    return [*lines, "", *_made_with(results)]


def report_lines(results: Results) -> list[str]:
    """Everything that was measured."""
    lines = ["# Time and memory: all measurements", ""]
    if results.quick:
        lines += [QUICK, ""]
    lines += [*_explanations(), "", "## Who takes part", "", *_peer_table(results), ""]
    for workload, density in results.groups():
        lines += _group(results, workload, density)
    return [*lines, "## Made with", "", *_made_with(results)]


def _explanations() -> list[str]:
    return [
        "All contenders are stepped in turn in one process, in a new random order each round. A "
        "ratio is of two times of the same round; shown are its median and [quartiles]. `plain` is "
        "the optimizer alone. `plain, again` is a second copy of it: how far its ratio strays from "
        "1 is what the measurement can't resolve. `sparseopt` is "
        '`SparseOptimizer(..., method="rigl", init="erk")`, with its `state=`.',
        "",
        "- *step*: the optimizer's step where masks stay, with all that a library wants called "
        "beside it.",
        "- *masking*: what stands between weights and gradients beyond plain's, as a multiple of "
        "plain `step()`: masks applied to weights before the forward pass, and gradients masked in "
        "the backward pass. Without the passes themselves.",
        "- *update*: the same as step where masks move, and how many were timed; also as a "
        f"multiple of a plain `{REFERENCE}` step on the same model.",
        f"- *mean*: step, masking and update together, one step in {USUAL_DELTA_T} being an "
        "update, as a multiple of plain `step()`; from the medians.",
        "- *density*: live weights in convolutions and linear layers, counted at the end. *moved*: "
        "share of the live weights that were not live before the updates that were timed.",
        "- *state*: tensors in `optimizer.state`. *masks*: tensors of truth values or bytes, "
        "what has been explored included, and masks of another type. *index*: whole numbers, which "
        "find live weights. *other*: everything else, such as dense gradients kept. All are found "
        "by following references from the optimizer, the model and what belongs to them; weights "
        "and gradients themselves are apart.",
        "- *checkpoint*: length of the file of `torch.save` with the state dicts of the model, the "
        "optimizer and what else is needed to go on.",
        "- *with masking*: `step()` beyond plain's, and masking as in the first table, as a share "
        "of plain's whole training step; where both were measured on the same processor.",
        "- *peak*: how far the memory of a process of its own rises, during masking and the step, "
        "above what it holds before; on the CPU by the kernel's high-water mark.",
    ]


def _peer_table(results: Results) -> list[str]:
    rows = []
    for peer in PEERS:
        known = results.peers.get(peer.name, {"version": None, "absent": "not asked for"})
        rows.append(
            [peer.name, known["version"] or "-", peer.does, peer.cannot, known["absent"] or "here"]
        )
    header = ["library", "version", "what it does here", "what it cannot do", "state"]
    return [*table(header, rows), "", f"Others are installed with `{INSTALL}`."]


def _group(results: Results, workload: str, density: float) -> list[str]:
    title = f"{WORKLOADS[workload].title}, density {density:g}"
    steps, training, construction, memory, profiles = (
        results.of(figures, workload, density)
        for figures in ("steps", "training", "construction", "memory", "profile")
    )
    lines = [f"## {title}", ""]
    if steps:
        lines += [f"{steps[0]['parameters']:,} parameters in {steps[0]['tensors']} tensors.", ""]
        lines += ["### The optimizer alone", "", *measured_on(steps), *time_table(steps), ""]
        lines += ["### Bytes between steps", "", *byte_table(steps), ""]
        held = holder_table(steps[-1], list(OURS))
        lines += [f"One by one, with {steps[-1]['optimizer']}:", "", *held, ""]
    if training:
        by_optimizer = {entry["optimizer"]: entry for entry in steps}
        lines += [f"### Whole training step, {WORKLOADS[workload].sample}", ""]
        lines += [*measured_on(training), *training_table(training, by_optimizer), ""]
    if construction or memory:
        lines += ["### Peak memory and construction", "", *measured_on([*construction, *memory])]
        lines += [*extras_table(construction, memory), ""]
    if profiles:
        lines += [f"### {WHERE}", "", *measured_on(profiles), *profile_lines(profiles), ""]
    return [*lines, *_absent([*steps, *training, *construction, *memory])]


def _absent(entries: Sequence[Entry]) -> list[str]:
    reasons = {name: reason for entry in entries for name, reason in entry["absent"].items()}
    lines = [f"- {name}: {reason}" for name, reason in reasons.items()]
    return ["Not in these tables:", "", *lines, ""] if lines else []


def _made_with(results: Results) -> list[str]:
    """One line for every different way in which figures were made."""
    lines: dict[str, list[str]] = {}
    for entry in results.entries:
        about = entry["made_with"]
        versions = [f"{name} {about[name]}" for name in ("sparseopt", "torch", "numpy", "python")]
        line = (
            f"{', '.join(versions)}; commit {about['git_commit'] or 'unknown'}; "
            f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, "
            f"OMP_WAIT_POLICY={about['omp_wait_policy']}, on {about['device']}; {about['system']}; "
            f"{about['rounds']} rounds of steps, masks moving every {about['update_every']}; "
            f"{about['training_rounds']} of training steps"
        )
        lines.setdefault(line, []).append(about["date"])
    return [
        f"- {_span(dates)}: {line}" for line, dates in sorted(lines.items(), key=lambda one: one[1])
    ]


def _span(dates: Sequence[str]) -> str:
    first, last = min(dates), max(dates)
    return first if first == last else f"{first} to {last}"
