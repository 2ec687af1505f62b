"""Committed results in short: the tables of the docs.

Tables of the CIFAR benchmark are in :mod:`benchmarks.cifar.overview`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.environment import machines
from benchmarks.common.tables import MISSING, table_of
from benchmarks.overhead.contenders import AGAIN, OURSELVES, PLAIN
from benchmarks.overhead.results import Entry, Results, threads
from benchmarks.overhead.tables import held_in_all, share_of_training
from benchmarks.overhead.workloads import WORKLOADS
from benchmarks.speed.cli import FIGURES
from benchmarks.speed.records import Record, read_records

HERE = Path(__file__).parent
OVERHEAD = HERE / "overhead" / "results" / "results.json"
SPEED = HERE / "speed" / "results"
STRUCTURED = HERE / "structured" / "results"
#: The density at which most is measured.
DENSITY = 0.1

#: The explanation of the columns in the table of costs.
COST_COLUMNS = (
    "RigL, ERK, automatic (live) state; medians. Times of `step()`, masking and full training "
    "steps are multiples of the plain optimizer's times. Both optimizers step in turn in one "
    "process. The quartiles of a second copy of the plain optimizer are in brackets. Memory is "
    "held between steps, and is a multiple of the plain optimizer's state: first state only, then "
    "state with positions and masks. The time of a mask update is a multiple of a plain AdamW "
    "(for-loop) step."
)
_ABOUT = ("model", "density", "batch", "processor", "threads")
_TIMES = ("compacted / dense", "by hand / dense")
#: The columns of short tables of speed; other tables have all columns.
SPEED_COLUMNS = {
    "inference": (*_ABOUT, "FLOPs / dense", *_TIMES),
    "training": (*_ABOUT, "masked / dense", *_TIMES),
}


def cost_table(results: Results, density: float = DENSITY) -> list[str]:
    """Time of a step and an update, and memory, as multiples of the plain optimizer's figures."""
    return table_of(_costs(results, entry) for entry in cost_entries(results, density))


def cost_machines(results: Results, density: float = DENSITY) -> str:
    """The machines on which the table of costs was measured, in a phrase."""
    return machines(entry["made_with"] for entry in cost_entries(results, density))


def cost_entries(results: Results, density: float = DENSITY) -> Iterator[Entry]:
    """The measurements of steps with our optimizer, by model."""
    for workload in WORKLOADS:
        for entry in results.of("steps", workload, density):
            if OURSELVES in entry["contenders"]:
                yield entry


def _costs(results: Results, entry: Entry) -> dict[str, str]:
    ours, plain = (entry["contenders"][name] for name in (OURSELVES, PLAIN))
    again, step = (entry["contenders"][name]["step"]["ratio"] for name in (AGAIN, OURSELVES))
    state = plain["bytes"]["state"]
    update, share = ours["update"]["ratio_to_reference"], training_share(results, entry)
    return {
        "model": WORKLOADS[entry["workload"]].title,
        "optimizer": f"`{entry['optimizer']}`",
        "threads": str(threads(entry)),
        "`step()`": f"{step['median']:.2f} ({again['q1']:.2f} to {again['q3']:.2f})",
        "masking": f"+ {ours['masking']['ratio']['median']:.2f}",
        "state": f"{ours['bytes']['state'] / state:.2f}",
        "all that is held": f"{held_in_all(ours) / state:.2f}",
        "mask update": MISSING if update is None else f"{update['median']:.1f}",
        "share of a training step": MISSING if share is None else f"{100 * share:+.1f} %",
    }


def training_share(results: Results, entry: Entry) -> float | None:
    """The time that the wrapper adds to full training steps, as a share, if it was measured."""
    for training in results.of("training", entry["workload"], entry["density"]):
        same = (training["optimizer"], threads(training)) == (entry["optimizer"], threads(entry))
        if same and OURSELVES in training["contenders"]:
            return share_of_training(training, entry, OURSELVES)
    return None


def speed_records(figure: str) -> list[Record]:
    """The committed results of a figure of speed."""
    return [record for record in read_records(SPEED) if record["figure"] == figure]


def speed_rows(figure: str) -> list[dict[str, str]]:
    """The rows of a figure of speed, by column."""
    return list(FIGURES[figure].rows(speed_records(figure)))


def speed_table(figure: str, records: list[Record]) -> list[str]:
    """The short table of a figure of speed."""
    return table_of(FIGURES[figure].rows(records), SPEED_COLUMNS.get(figure, ()))
