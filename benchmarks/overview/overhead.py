"""What the wrapper costs in short: a row for each model and optimizer that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.overhead.contenders import AGAIN, PLAIN
from benchmarks.overhead.results import Entry, Results
from benchmarks.overhead.tables import NONE, share_of_training, table
from benchmarks.overhead.targets import DENSITY, OURSELVES
from benchmarks.overhead.workloads import WORKLOADS

FILE = Path(__file__).parents[1] / "overhead" / "results" / "results.json"

#: What the columns of the table are.
COLUMNS = (
    "RigL, ERK, automatic (compact) state; medians. `step()`, masking and whole training steps are "
    "multiples of the plain optimizer's, stepped in turn in the same process; in brackets, between "
    "which quartiles a second copy of the plain optimizer lay. "
    "Memory is what is held between steps, as a multiple of the plain optimizer's state: state "
    "alone, and with positions and masks. A mask update is a multiple of a plain AdamW "
    "(for-loop) step."
)


def densities(results: Results) -> list[float]:
    """Of which there is a table, that of the targets first."""
    found = {entry["density"] for entry in results.entries if entry["figures"] == "steps"}
    return sorted(found, key=lambda density: (density != DENSITY, density))


def cost_table(results: Results, density: float = DENSITY) -> list[str]:
    """Time of a step and an update, and memory, as multiples of the plain optimizer's."""
    header = ["model", "optimizer", "`step()`", "masking", "state", "all that is held"]
    header += ["mask update", "share of a training step"]
    return table(header, [_row(results, entry) for entry in _entries(results, density)])


def machines(results: Results, density: float = DENSITY) -> str:
    """What the table's figures were measured on, in a phrase."""
    about = (entry["made_with"] for entry in _entries(results, density))
    found = (
        f"{one['processor']}, {one['threads']} threads, on {one['device']}, torch {one['torch']}"
        for one in about
    )
    return "; ".join(dict.fromkeys(found))


def _entries(results: Results, density: float) -> Iterator[Entry]:
    for workload in WORKLOADS:
        for entry in results.of("steps", workload, density):
            if OURSELVES in entry["contenders"]:
                yield entry


def _row(results: Results, entry: Entry) -> list[str]:
    ours, plain = (entry["contenders"][name] for name in (OURSELVES, PLAIN))
    again = entry["contenders"][AGAIN]["step"]["ratio"]
    held, state = ours["bytes"], plain["bytes"]["state"]
    update = ours["update"]["ratio_to_reference"]
    return [
        WORKLOADS[entry["workload"]].title,
        f"`{entry['optimizer']}`",
        f"{ours['step']['ratio']['median']:.2f} ({again['q1']:.2f} to {again['q3']:.2f})",
        f"+ {ours['masking']['ratio']['median']:.2f}",
        f"{held['state'] / state:.2f}",
        f"{sum(held[kind] for kind in ('state', 'index', 'masks', 'other')) / state:.2f}",
        NONE if update is None else f"{update['median']:.1f}",
        _share(results, entry),
    ]


def _share(results: Results, entry: Entry) -> str:
    """What the wrapper adds to a whole training step, where that was measured too."""
    place = entry["workload"], entry["density"], entry["optimizer"]
    training = results.find("training", *place)
    if training is None or OURSELVES not in training["contenders"]:
        return NONE
    share = share_of_training(training, entry, OURSELVES)
    return NONE if share is None else f"{100 * share:+.1f} %"
