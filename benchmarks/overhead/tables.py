"""Tables in Markdown, one for each kind of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common.tables import MISSING, table_of
from benchmarks.overhead.contenders import AGAIN, OURSELVES, PLAIN, REFERENCE
from benchmarks.overhead.results import Entry, threads

#: The cadence for which the mean over ordinary and update steps is shown: the wrapper's default.
USUAL_DELTA_T = 100
KINDS = ("state", "index", "masks", "other")
PHASES = {"whole": "whole", "passes": "forward and backward", "step": "step"}
MEGA = 1e6
#: Operators that are named in a profile.
FEW = 6


def time_table(entries: Sequence[Entry]) -> list[str]:
    """Ordinary steps and updates of the optimizer alone."""
    return table_of(
        {
            "optimizer": entry["optimizer"],
            "threads": str(threads(entry)),
            "contender": name,
            **_both("step", times["step"]),
            "masking, x plain": MISSING if name == PLAIN else _ratio(times["masking"]["ratio"]),
            "update, ms": _with_count(times["update"]["milliseconds"]),
            "update, x plain": _ratio(times["update"]["ratio"]),
            f"update, x plain {REFERENCE}": _ratio(times["update"]["ratio_to_reference"]),
            "mean, x plain": _mean_ratio(times),
            "density": MISSING if times["density"] is None else f"{times['density']:.4f}",
            "moved": MISSING if times["moved"] is None else f"{times['moved']:.2f}",
        }
        for entry, name, times in _rows(entries)
    )


def byte_table(entries: Sequence[Entry]) -> list[str]:
    """Memory between steps; implementations with equal figures share a row."""
    optimizers: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for entry, name, figures in _rows(entries):
        if name == AGAIN:
            continue
        state, held = entry["contenders"][PLAIN]["bytes"]["state"], figures["bytes"]
        row = {
            "contender": name,
            **{f"{kind}, MB": f"{held[kind] / MEGA:.2f}" for kind in KINDS},
            "state + index, x plain": f"{(held['state'] + held['index']) / state:.3f}",
            "all four, x plain": f"{held_in_all(figures) / state:.3f}",
            "masks, bytes a weight": f"{held['masks'] / entry['sparse_weights']:.3f}",
            "weights, MB": f"{held['weights'] / MEGA:.2f}",
        }
        optimizers.setdefault(tuple(row.items()), []).append(entry["optimizer"])
    return table_of(
        {"optimizer": ", ".join(dict.fromkeys(names)), **dict(row)}
        for row, names in optimizers.items()
    )


def training_table(entries: Sequence[Entry], steps: Sequence[Entry]) -> list[str]:
    """Full training steps; the time of masking comes from the figures of the optimizer alone."""
    alone = {(entry["optimizer"], threads(entry)): entry for entry in steps}
    rows = []
    for entry, name, times in _rows(entries):
        optimizer = entry["optimizer"]
        row = {"optimizer": optimizer, "threads": str(threads(entry)), "contender": name}
        for phase, title in PHASES.items():
            row |= _both(title, times[phase])
        beyond = MISSING if name == PLAIN else _ratio(times["beyond"], digits=4)
        share = share_of_training(entry, alone.get((optimizer, threads(entry))), name)
        row["`step()` beyond plain's, share of whole"] = beyond
        row["with masking"] = MISSING if share is None else f"{share:+.4f}"
        rows.append(row)
    return table_of(rows)


def share_of_training(training: Entry, steps: Entry | None, name: str) -> float | None:
    """Return the extra time of masking and of ``step()``, as a share of a plain training step.

    The time of ``step()`` comes from training steps. Masking is a part of the backward pass there,
    so its time comes from the figures of the optimizer alone, if they have the same processor.
    """
    if steps is None or name == PLAIN or name not in steps["contenders"]:
        return None
    masking = steps["contenders"][name]["masking"]["milliseconds"]
    if masking is None or processor(training) != processor(steps):
        return None
    whole = training["contenders"][PLAIN]["whole"]["milliseconds"]["median"]
    return float(training["contenders"][name]["beyond"]["median"] + masking["median"] / whole)


def profile_table(entries: Sequence[Entry]) -> list[str]:
    """The operators with the largest self time in a step."""
    return table_of(
        {
            "optimizer": entry["optimizer"],
            "threads": str(threads(entry)),
            "contender": name,
            "phase": phase,
            "share of the time": _largest(found),
        }
        for entry in entries
        for name, phases in entry["operators"].items()
        for phase, found in phases.items()
        if name == OURSELVES or phase == "step"
    )


def _largest(found: Mapping[str, Any]) -> str:
    rows = [*found["operators"], {**found["outside"], "name": "Python, NumPy, waiting"}]
    largest = sorted(rows, key=lambda row: -row["share"])[:FEW]
    return "; ".join(f"`{row['name']}` {row['share']:.2f}" for row in largest)


def processor(entry: Entry) -> str:
    """The machine of an entry."""
    return str(entry["made_with"]["processor"])


def ordinary_step(times: Mapping[str, Any]) -> float | None:
    """Return an ordinary step with its masking, as a multiple of plain ``step()``."""
    if times["step"]["ratio"] is None:
        return None
    return float(times["step"]["ratio"]["median"] + times["masking"]["ratio"]["median"])


def held_in_all(figures: Mapping[str, Any]) -> int:
    """Return the bytes between steps, without weights and gradients."""
    return sum(figures["bytes"][kind] for kind in KINDS)


def _rows(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, Any]]:
    for entry in entries:
        for name, figures in entry["contenders"].items():
            if name != REFERENCE:
                yield entry, name, figures


def _both(title: str, times: Mapping[str, Any]) -> dict[str, str]:
    milliseconds, ratio = _median(times["milliseconds"]), _ratio(times["ratio"])
    return {f"{title}, ms": milliseconds, f"{title}, x plain": ratio}


def _median(summary: Mapping[str, float] | None) -> str:
    return MISSING if summary is None else f"{summary['median']:.3g}"


def _with_count(summary: Mapping[str, float] | None) -> str:
    return MISSING if summary is None else f"{_median(summary)} (of {summary['count']})"


def _ratio(summary: Mapping[str, float] | None, digits: int = 3) -> str:
    """The median and [the quartiles]."""
    if summary is None:
        return MISSING
    middle, q1, q3 = (f"{summary[key]:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{middle} [{q1}, {q3}]"


def _mean_ratio(times: Mapping[str, Any]) -> str:
    update, ordinary = times["update"]["ratio"], ordinary_step(times)
    if update is None or ordinary is None:
        return MISSING
    return f"{((USUAL_DELTA_T - 1) * ordinary + update['median']) / USUAL_DELTA_T:.3f}"
