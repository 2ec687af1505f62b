"""``report.md``, made from the results file alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar.files import write_atomic
from benchmarks.overhead.contenders import AGAIN, PLAIN, REFERENCE
from benchmarks.overhead.workloads import WORKLOADS

Record = dict[str, Any]

#: The cadence for which the mean over ordinary and update steps is shown: the wrapper's default.
USUAL_DELTA_T = 100
NONE = "-"


def write_report(results: Path, report: Path) -> None:
    """Read ``results`` and write ``report``, Markdown."""
    record = json.loads(results.read_text())
    write_atomic(report, "\n".join(report_lines(record)).encode())


def report_lines(record: Record) -> list[str]:
    """The lines of the report."""
    lines = ["# What the wrapper costs", ""]
    if record["quick"]:
        lines += ["**A quick run with tiny models: it says nothing about speed.**", ""]
    lines += [*_method(record), ""]
    for title, cases in _groups(record["steps"]):
        first = cases[0]
        size = f"{first['parameters']:,} parameters in {first['tensors']} tensors"
        lines += [f"## {title}", "", f"{size}.", ""]
        lines += ["### Time of a step", "", *_time_table(cases), ""]
        lines += ["### Bytes between steps", "", *_byte_table(cases), ""]
    for title, cases in _groups(record["training_steps"]):
        batch = record["config"]["batch_size"]
        lines += [f"## {title}: whole training step, batch {batch}", ""]
        lines += [*_training_table(cases), ""]
    return [*lines, "## Made with", "", *_environment(record), ""]


def _method(record: Record) -> list[str]:
    config = record["config"]
    return [
        "All contenders are stepped in turn in one process, in a new random order each round. A "
        "ratio is of two times of the same round; shown are its median and [quartiles] over "
        f"{config['rounds']} rounds. `plain` is the optimizer alone. `plain, again` is a second "
        "copy of it: how far its ratio strays from 1 is what the measurement can't resolve. "
        '`compact` and `masked` are `SparseOptimizer(..., method="rigl", init="erk")` with '
        "that `state=`.",
        "",
        "- *step*: `step()` where masks stay.",
        "- *masking*: what the gradient hooks add to `backward()`, as a multiple of plain "
        "`step()`.",
        f"- *update*: `step()` where masks move, every {config['update_every']} steps here; also "
        f"as a multiple of a plain `{REFERENCE}` step on the same model.",
        f"- *mean*: step, masking and update together, one step in {USUAL_DELTA_T} being an "
        "update, as a multiple of plain `step()`; from the medians.",
        "- *state*: tensors in `optimizer.state`. *masks*: one bool a weight. *index*: everything "
        "else that the wrapper holds. What a step needs for a moment is not in it.",
    ]


def _groups(cases: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    return [
        (f"{WORKLOADS[workload].title}, density {density:g}", list(group))
        for (workload, density), group in itertools.groupby(
            cases, key=lambda case: (case["workload"], case["density"])
        )
    ]


def _time_table(cases: Sequence[Record]) -> list[str]:
    header = ["optimizer", "contender", "step, ms", "x plain", "masking, x plain"]
    header += ["update, ms", "x plain", f"x plain {REFERENCE}", "mean, x plain"]
    return _table(
        header,
        [
            [
                case["optimizer"],
                name,
                _median(times["step"]["milliseconds"]),
                _with_quartiles(times["step"]["ratio"]),
                NONE if name == PLAIN else _with_quartiles(times["masking"]["ratio"]),
                _median(times["update"]["milliseconds"]),
                _with_quartiles(times["update"]["ratio"]),
                _with_quartiles(times["update"]["ratio_to_reference"]),
                _mean_ratio(times),
            ]
            for case, name, times in _rows(cases)
        ],
    )


def _byte_table(cases: Sequence[Record]) -> list[str]:
    header = ["optimizer", "contender", "state, MB", "x plain", "index, MB"]
    header += ["state + index, x plain", "masks, MB", "all, x plain"]
    # Implementations of one optimizer mostly hold the same, and then share a row.
    rows: dict[tuple[str, ...], list[str]] = {}
    for case, name, times in _rows(cases):
        if name == AGAIN:
            continue
        held = times["bytes"]
        plain = case["contenders"][PLAIN]["bytes"]["state"]
        row = (
            name,
            _megabytes(held["state"]),
            _ratio(held["state"], plain),
            _megabytes(held["index"]),
            _ratio(held["state"] + held["index"], plain),
            _megabytes(held["masks"]),
            _ratio(sum(held.values()), plain),
        )
        rows.setdefault(row, []).append(case["optimizer"])
    return _table(header, [[", ".join(names), *row] for row, names in rows.items()])


def _training_table(cases: Sequence[Record]) -> list[str]:
    header = ["optimizer", "contender", "whole, ms", "x plain", "forward and backward, ms"]
    header += ["x plain", "`step()`, ms", "`step()` beyond plain's, share of whole"]
    rows = []
    for case, name, times in _rows(cases):
        plain = case["contenders"][PLAIN]
        beyond = _middle(times["step"]) - _middle(plain["step"])
        rows.append(
            [
                case["optimizer"],
                name,
                _median(times["whole"]["milliseconds"]),
                _with_quartiles(times["whole"]["ratio"]),
                _median(times["passes"]["milliseconds"]),
                _with_quartiles(times["passes"]["ratio"]),
                _median(times["step"]["milliseconds"]),
                NONE if name == PLAIN else f"{beyond / _middle(plain['whole']):+.4f}",
            ]
        )
    return _table(header, rows)


def _rows(cases: Sequence[Record]) -> list[tuple[Record, str, Record]]:
    return [
        (case, name, times)
        for case in cases
        for name, times in case["contenders"].items()
        if name != REFERENCE
    ]


def _environment(record: Record) -> list[str]:
    about = record["environment"]
    versions = [f"{name} {about[name]}" for name in ("sparseopt", "torch", "numpy", "python")]
    return [
        f"- {record['date']}",
        f"- {', '.join(versions)}; commit {about['git_commit'] or 'unknown'}",
        f"- {about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"OMP_WAIT_POLICY={about['omp_wait_policy']}, on {about['device']}; {about['system']}",
    ]


def _mean_ratio(times: Mapping[str, Any]) -> str:
    update = times["update"]["ratio"]
    if update is None:
        return NONE
    ordinary = times["step"]["ratio"]["median"] + times["masking"]["ratio"]["median"]
    mean = ((USUAL_DELTA_T - 1) * ordinary + update["median"]) / USUAL_DELTA_T
    return f"{mean:.3f}"


def _middle(phase: Mapping[str, Any]) -> float:
    return float(phase["milliseconds"]["median"])


def _median(summary: Mapping[str, float] | None) -> str:
    return NONE if summary is None else f"{summary['median']:.3g}"


def _with_quartiles(summary: Mapping[str, float] | None) -> str:
    if summary is None:
        return NONE
    return f"{summary['median']:.3f} [{summary['q1']:.3f}, {summary['q3']:.3f}]"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"


def _ratio(count: int, plain: int) -> str:
    return f"{count / plain:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
