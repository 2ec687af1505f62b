"""Where the time goes and how low it could go, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.overhead.contenders import AGAIN, PLAIN, REFERENCE
from benchmarks.overhead.floor import PARTS, UPDATE_PARTS
from benchmarks.overhead.results import Entry, Results
from benchmarks.overhead.tables import NONE, Table, measured_on, median, table, with_quartiles
from benchmarks.overhead.targets import (
    DENSITY,
    LARGE,
    NOT_YET,
    OURSELVES,
    STEP_BOUNDS,
    UPDATE_BOUND,
)

WHERE = "Where the time goes"
OUTSIDE = "(Python, NumPy, waiting)"
GIGA = 1e9
#: Operators of a step that are named where there is no room for all.
FEW = 5


def profile_lines(entries: Sequence[Entry]) -> Table:
    """Everything: the floors, the choices, the operators and the functions."""
    lines = [_memory(entries), "", *_floor_explained(), "", *_floor_table(entries), ""]
    lines += [*_choice_explained(), "", *_choice_table(entries), ""]
    for entry in entries:
        lines += [f"By operator, {entry['optimizer']}:", "", *_operator_table(entry), ""]
        lines += [f"By function, mask update, {entry['optimizer']}:", ""]
        lines += [*_function_table(entry), ""]
    return lines[:-1]


def why_lines(results: Results) -> Table:
    """What was asked for beside the floor, and the operators that take most, of the large model."""
    entries = results.of("profile", LARGE, DENSITY)
    if not entries:
        return [f"{NOT_YET.capitalize()}."]
    header = ["`step()`, x plain", "asked for", "measured", "floor"]
    header += ["asked for less than the floor"]
    rows = [
        [
            entry["optimizer"],
            f"<= {STEP_BOUNDS[entry['optimizer']]:g}",
            with_quartiles(entry["times"][OURSELVES]["step"]["ratio"]),
            f"{_ratio(lowest):.3f}",
            _verdict(STEP_BOUNDS[entry["optimizer"]], _ratio(lowest)),
        ]
        for entry in entries
        for lowest in [_lowest(entry["floor"], "step")]
    ]
    update_header = [f"mask update, x plain `{REFERENCE}`", "asked for", "measured"]
    update_header += ["choice alone, by torch"]
    updates = [
        [
            entry["optimizer"],
            f"<= {UPDATE_BOUND:g}",
            with_quartiles(entry["times"][OURSELVES]["update"]["ratio"]),
            f"{_ratio(_lowest(entry['choice'], 'choice'), 'choice'):.3f}",
        ]
        for entry in entries
    ]
    shares = [row for entry in entries for row in _shares(entry)]
    return [
        *measured_on(entries),
        *_floor_explained(),
        "",
        *table(header, rows),
        "",
        _memory(entries),
        "",
        *_choice_explained(),
        "",
        *table(update_header, updates),
        "",
        f"{WHERE}, in shares:",
        "",
        *table(["optimizer", "phase", "by", "most of it"], shares),
    ]


def _floor_explained() -> Table:
    return [
        "The *floor* is measured in the same rounds, on the same layers and masks: live gradients "
        "and live weights are gathered, the inner optimizer steps these and whatever is not "
        "sparse, the weights are cleared and the live ones written back. Each is one pass of "
        "torch's own operators (a plain `memset` clears) into memory that is there already, and "
        "there is nothing else. Of several ways to do it the fastest counts. A target below can't "
        "be met by code that gathers with these operators, one pass for each part."
    ]


def _choice_explained() -> Table:
    return [
        "A mask update is more than its *choice*: gradients checked for infinities, the magnitude "
        "of each, and `torch.topk` over live weights and over gradients. This is what torch needs "
        "for that alone; state, positions and weights are still to be moved."
    ]


def _memory(entries: Sequence[Entry]) -> str:
    """How much of the memory a gather asks for, and what the memory gives, of the first entry."""
    lines, memory = entries[0]["lines"], entries[0]["memory"]
    read, copy = (1e3 * memory["bytes"] / memory[key]["milliseconds"] for key in ("read", "copy"))
    return (
        f"{lines:.0%} of the cache lines of sparse weights have a live weight in them, so to "
        f"gather them is to read {lines:.0%} of the memory. All threads of torch together read "
        f"{read / GIGA:.1f} GB/s (`sum`) and copy {copy / GIGA:.1f} GB/s (`copy_`, each byte read "
        f"and written, counted once)."
    )


def _floor_table(entries: Sequence[Entry]) -> Table:
    header = ["optimizer", "x plain `step()`", *PARTS, "together"]
    rows = []
    for entry in entries:
        optimizer = entry["optimizer"]
        for way, parts in entry["floor"].items():
            found = [f"{parts[part]['ratio']:.3f}" for part in PARTS]
            whole = with_quartiles(parts["step"]["ratio"])
            rows.append([optimizer, f"floor, {way}", *found, whole])
        for name in (OURSELVES, AGAIN):
            whole = with_quartiles(entry["times"][name]["step"]["ratio"])
            rows.append([optimizer, name, *[NONE] * len(PARTS), whole])
        for name in ("read", "copy"):
            whole = f"{entry['memory'][name]['ratio']:.3f}"
            rows.append([optimizer, f"{name} all bytes once", *[NONE] * len(PARTS), whole])
        plain = median(entry["times"][PLAIN]["step"]["milliseconds"])
        rows.append([optimizer, "plain, ms", *[NONE] * len(PARTS), plain])
    return table(header, rows)


def _choice_table(entries: Sequence[Entry]) -> Table:
    header = ["optimizer", f"x plain `{REFERENCE}` step", *UPDATE_PARTS, "together"]
    rows = []
    for entry in entries:
        for way, parts in entry["choice"].items():
            found = [f"{parts[part]['ratio']:.3f}" for part in UPDATE_PARTS]
            whole = with_quartiles(parts["choice"]["ratio"])
            rows.append([entry["optimizer"], f"choice, {way}", *found, whole])
        whole = with_quartiles(entry["times"][OURSELVES]["update"]["ratio"])
        label = f"{OURSELVES}, whole update"
        rows.append([entry["optimizer"], label, *[NONE] * len(UPDATE_PARTS), whole])
    return table(header, rows)


def _operator_table(entry: Entry) -> Table:
    header = ["contender", "phase", "operator", "calls", "self, ms", "share"]
    rows = []
    for name, phases in entry["operators"].items():
        for phase, found in phases.items():
            where = [name, phase]
            rows += [[*where, *_named(row)] for row in found["operators"]]
            rows.append([*where, "(other operators)", NONE, *_time(found["others"])])
            rows.append([*where, OUTSIDE, NONE, *_time(found["outside"])])
            rows += [[*where, *_named(row, "on the device: ")] for row in found["kernels"]]
    return table(header, rows)


def _function_table(entry: Entry) -> Table:
    rows = [_named(row) for row in entry["functions"]]
    return table(["function", "calls", "self, ms", "share"], rows)


def _named(row: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [f"{prefix}`{row['name']}`", f"{row['calls']:g}", *_time(row)]


def _time(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['milliseconds']:.3g}", f"{row['share']:.3f}"]


def _shares(entry: Entry) -> Iterator[list[str]]:
    """What takes most of our steps and updates: by operator of torch, updates by function too."""
    for phase, found in entry["operators"][OURSELVES].items():
        rows = [*found["operators"], {"name": OUTSIDE, **found["outside"]}]
        yield [entry["optimizer"], phase, "operator", _most(rows)]
    yield [entry["optimizer"], "update", "function", _most(entry["functions"])]


def _most(rows: Sequence[Mapping[str, Any]]) -> str:
    largest = sorted(rows, key=lambda row: -row["share"])[:FEW]
    return "; ".join(f"`{row['name']}` {row['share']:.2f}" for row in largest)


def _lowest(floors: Mapping[str, Any], whole: str) -> Any:
    return min(floors.values(), key=lambda parts: parts[whole]["ratio"]["median"])


def _ratio(parts: Mapping[str, Any], whole: str = "step") -> float:
    return float(parts[whole]["ratio"]["median"])


def _verdict(bound: float, floor: float) -> str:
    return "**yes**" if bound < floor else "no"
