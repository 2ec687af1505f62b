"""Tables in Markdown, one for each kind of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common.tables import MISSING, table
from benchmarks.overhead.contenders import AGAIN, OURSELVES, PLAIN, REFERENCE
from benchmarks.overhead.results import Entry

#: The cadence for which the mean over ordinary and update steps is shown: the wrapper's default.
USUAL_DELTA_T = 100
KINDS = ("state", "index", "masks", "other")
MEGA = 1e6
#: Operators that are named in a profile.
FEW = 6


def time_table(entries: Sequence[Entry]) -> list[str]:
    """Ordinary steps and updates of the optimizer alone."""
    header = ["optimizer", "contender", "step, ms", "x plain", "masking, x plain"]
    header += ["update, ms", "x plain", f"x plain {REFERENCE}", "mean, x plain"]
    header += ["density", "moved"]
    rows = [
        [
            optimizer,
            name,
            median(times["step"]["milliseconds"]),
            with_quartiles(times["step"]["ratio"]),
            MISSING if name == PLAIN else with_quartiles(times["masking"]["ratio"]),
            _with_count(times["update"]["milliseconds"]),
            with_quartiles(times["update"]["ratio"]),
            with_quartiles(times["update"]["ratio_to_reference"]),
            _mean_ratio(times),
            MISSING if times["density"] is None else f"{times['density']:.4f}",
            MISSING if times["moved"] is None else f"{times['moved']:.2f}",
        ]
        for optimizer, name, times in _rows(entries)
    ]
    return table(header, rows)


def byte_table(entries: Sequence[Entry]) -> list[str]:
    """What is held between steps."""
    header = ["optimizer", "contender", *(f"{kind}, MB" for kind in KINDS)]
    header += ["state + index, x plain", "all four, x plain", "masks, bytes a weight"]
    header += ["weights, MB"]
    # Implementations of one optimizer mostly hold the same, and then share a row.
    rows: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        plain = entry["contenders"][PLAIN]
        for optimizer, name, figures in _rows([entry]):
            held, state = figures["bytes"], plain["bytes"]["state"]
            row = (
                name,
                *(f"{held[kind] / MEGA:.2f}" for kind in KINDS),
                f"{(held['state'] + held['index']) / state:.3f}",
                f"{held_in_all(figures) / state:.3f}",
                f"{held['masks'] / entry['sparse_weights']:.3f}",
                f"{held['weights'] / MEGA:.2f}",
            )
            if name != AGAIN:
                rows.setdefault(row, []).append(optimizer)
    return table(header, [[", ".join(names), *row] for row, names in rows.items()])


def training_table(entries: Sequence[Entry], steps: Mapping[str, Entry]) -> list[str]:
    """Whole training steps; the time of masking is from the figures of the optimizer alone."""
    header = ["optimizer", "contender", "whole, ms", "x plain", "forward and backward, ms"]
    header += ["x plain", "step, ms", "x plain", "`step()` beyond plain's, share of whole"]
    header += ["with masking"]
    rows = []
    for entry in entries:
        for optimizer, name, times in _rows([entry]):
            share = share_of_training(entry, steps.get(optimizer), name)
            measured = [
                text
                for phase in ("whole", "passes", "step")
                for text in (
                    median(times[phase]["milliseconds"]),
                    with_quartiles(times[phase]["ratio"]),
                )
            ]
            beyond = MISSING if name == PLAIN else with_quartiles(times["beyond"], digits=4)
            with_masking = MISSING if share is None else f"{share:+.4f}"
            rows.append([optimizer, name, *measured, beyond, with_masking])
    return table(header, rows)


def share_of_training(training: Entry, steps: Entry | None, name: str) -> float | None:
    """Return the time of masking and of ``step()`` beyond plain's, as a share of the plain whole.

    ``step()`` is taken from within training steps. Masking, which hides in the backward pass there,
    is taken from where nothing else is timed with it, if that was on the same processor.
    """
    if steps is None or name == PLAIN or name not in steps["contenders"]:
        return None
    masking = steps["contenders"][name]["masking"]["milliseconds"]
    if masking is None or processor(training) != processor(steps):
        return None
    whole = training["contenders"][PLAIN]["whole"]["milliseconds"]["median"]
    return float(training["contenders"][name]["beyond"]["median"] + masking["median"] / whole)


def profile_table(entries: Sequence[Entry]) -> list[str]:
    """Where the time of a step goes: the operators that take most of it themselves."""
    header = ["optimizer", "contender", "phase", "share of the time"]
    rows = [
        [entry["optimizer"], name, phase, _largest(found)]
        for entry in entries
        for name, phases in entry["operators"].items()
        for phase, found in phases.items()
        if name == OURSELVES or phase == "step"
    ]
    return table(header, rows)


def _largest(found: Mapping[str, Any]) -> str:
    rows = [*found["operators"], {**found["outside"], "name": "Python, NumPy, waiting"}]
    largest = sorted(rows, key=lambda row: -row["share"])[:FEW]
    return "; ".join(f"`{row['name']}` {row['share']:.2f}" for row in largest)


def median(summary: Mapping[str, float] | None) -> str:
    """The median, in three digits."""
    return MISSING if summary is None else f"{summary['median']:.3g}"


def with_quartiles(summary: Mapping[str, float] | None, digits: int = 3) -> str:
    """The median and [the quartiles]."""
    if summary is None:
        return MISSING
    middle, q1, q3 = (f"{summary[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{middle} [{q1}, {q3}]"


def processor(entry: Entry) -> str:
    """What an entry was measured on."""
    return str(entry["made_with"]["processor"])


def ordinary_step(times: Mapping[str, Any]) -> float | None:
    """Return an ordinary step with its masking, as a multiple of plain ``step()``."""
    if times["step"]["ratio"] is None:
        return None
    return float(times["step"]["ratio"]["median"] + times["masking"]["ratio"]["median"])


def held_in_all(figures: Mapping[str, Any]) -> int:
    """Return the bytes held between steps, weights and gradients apart."""
    return sum(figures["bytes"][kind] for kind in KINDS)


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[str, str, Any]]:
    for entry in entries:
        for name, figures in entry["contenders"].items():
            if name != REFERENCE:
                yield entry["optimizer"], name, figures


def _with_count(summary: Mapping[str, float] | None) -> str:
    return MISSING if summary is None else f"{median(summary)} (of {summary['count']})"


def _mean_ratio(times: Mapping[str, Any]) -> str:
    update, ordinary = times["update"]["ratio"], ordinary_step(times)
    if update is None or ordinary is None:
        return MISSING
    return f"{((USUAL_DELTA_T - 1) * ordinary + update['median']) / USUAL_DELTA_T:.3f}"
