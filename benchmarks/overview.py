"""Committed results in short: the tables that the README and the docs share.

Tables of the CIFAR benchmark are in :mod:`benchmarks.cifar.overview`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.tables import MISSING, table
from benchmarks.overhead.contenders import AGAIN, OURSELVES, PLAIN
from benchmarks.overhead.results import Entry, Results
from benchmarks.overhead.tables import held_in_all, share_of_training
from benchmarks.overhead.workloads import WORKLOADS
from benchmarks.speed.linear import fastest_ways
from benchmarks.speed.movement import COLUMNS as MOVEMENT_COLUMNS
from benchmarks.speed.movement import cells
from benchmarks.speed.records import Record, fastest
from benchmarks.speed.training import MODELS, average_steps

HERE = Path(__file__).parent
OVERHEAD = HERE / "overhead" / "results" / "results.json"
SPEED = HERE / "speed" / "results"
#: The density of the README's table of costs, and of the first one in the docs.
DENSITY = 0.1

#: What the columns of the table of costs are.
COST_COLUMNS = (
    "RigL, ERK, automatic (compact) state; medians. `step()`, masking and whole training steps are "
    "multiples of the plain optimizer's, stepped in turn in the same process; in brackets, between "
    "which quartiles a second copy of the plain optimizer lay. "
    "Memory is what is held between steps, as a multiple of the plain optimizer's state: state "
    "alone, and with positions and masks. A mask update is a multiple of a plain AdamW "
    "(for-loop) step."
)
#: What the columns of the two tables of times are.
SPEED_COLUMNS = (
    "Inference of compacted models above, whole training steps by `CompactedTraining` below; *made "
    "by hand* is dense code of the same shapes. [What is compared, and how]"
    "(docs/results/structured.md#time-of-compacted-models)."
)


def densities(results: Results) -> list[float]:
    """Of which there is a table of costs, the README's first."""
    found = {entry["density"] for entry in results.entries if entry["figures"] == "steps"}
    return sorted(found, key=lambda density: (density != DENSITY, density))


def cost_table(results: Results, density: float = DENSITY) -> list[str]:
    """Time of a step and an update, and memory, as multiples of the plain optimizer's."""
    header = ["model", "optimizer", "`step()`", "masking", "state", "all that is held"]
    header += ["mask update", "share of a training step"]
    return table(header, [_costs(results, entry) for entry in _steps(results, density)])


def cost_machines(results: Results, density: float = DENSITY) -> str:
    """What the figures of the table of costs were measured on, in a phrase."""
    about = (entry["made_with"] for entry in _steps(results, density))
    found = (
        f"{one['processor']}, {one['threads']} thread{'s' * (one['threads'] != 1)}, on "
        f"{one['device']}, torch {one['torch']}"
        for one in about
    )
    return "; ".join(dict.fromkeys(found))


def _steps(results: Results, density: float) -> Iterator[Entry]:
    for workload in WORKLOADS:
        for entry in results.of("steps", workload, density):
            if OURSELVES in entry["contenders"]:
                yield entry


def _costs(results: Results, entry: Entry) -> list[str]:
    ours, plain = (entry["contenders"][name] for name in (OURSELVES, PLAIN))
    again = entry["contenders"][AGAIN]["step"]["ratio"]
    state = plain["bytes"]["state"]
    update = ours["update"]["ratio_to_reference"]
    return [
        WORKLOADS[entry["workload"]].title,
        f"`{entry['optimizer']}`",
        f"{ours['step']['ratio']['median']:.2f} ({again['q1']:.2f} to {again['q3']:.2f})",
        f"+ {ours['masking']['ratio']['median']:.2f}",
        f"{ours['bytes']['state'] / state:.2f}",
        f"{held_in_all(ours) / state:.2f}",
        MISSING if update is None else f"{update['median']:.1f}",
        _share(results, entry),
    ]


def _share(results: Results, entry: Entry) -> str:
    """What the wrapper adds to a whole training step, where that was measured too."""
    place = entry["workload"], entry["density"], entry["optimizer"]
    training = results.find("training", *place)
    if training is None or OURSELVES not in training["contenders"]:
        return MISSING
    share = share_of_training(training, entry, OURSELVES)
    return MISSING if share is None else f"{100 * share:+.1f} %"


def channel_table(records: list[Record]) -> list[str]:
    """FLOPs and time of compacted models, as multiples of the dense one's."""
    rows = []
    for record, one in _each(records, "inference"):
        dense, *others = _fastest(one["milliseconds"], ("dense", "compacted", "by hand"))
        times = [f"{time / dense:.3f}" for time in others]
        rows.append([*_about(record, one), f"{record['flops_ratio']:.3f}", *times])
    return table(["model", "density", "batch", "FLOPs", "time", "time, made by hand"], rows)


def training_table(records: list[Record]) -> list[str]:
    """Time of an average training step, as a multiple of the dense model's."""
    rows = []
    for record, one in _each(records, "training"):
        dense, *others = _fastest(average_steps(one["milliseconds"]), MODELS)
        rows.append([*_about(record, one), *(f"{time / dense:.3f}" for time in others)])
    header = ["model", "density", "batch", "masked", "without dropped channels"]
    return table([*header, "made by hand"], rows)


def movement_table(records: list[Record]) -> list[str]:
    """Channels that are live and that have ever been."""
    rows = []
    for record in records:
        if "movement" in record:
            keys = ("method", "workload", "data", "density")
            rows.append([*(str(record["movement"][key]) for key in keys), *cells(record)])
    return table(["method", "model", "images", "density", *MOVEMENT_COLUMNS], rows)


def linear_table(records: list[Record]) -> list[str]:
    """How much faster than the fastest dense way a sparse linear layer is."""
    rows = []
    for _, one in _each(records, "linear"):
        (dense, _), (sparse, _) = fastest_ways(one)
        about = [" x ".join(map(str, one["shape"])), str(one["density"]), str(one["rows"])]
        rows.append([*about, f"{dense / sparse:.2f}", one["chosen"]])
    return table(["in x out", "density", "rows", "dense time / sparse time", "chosen"], rows)


def _each(records: list[Record], figure: str) -> Iterator[tuple[Record, Any]]:
    for record in records:
        for one in record.get(figure, ()):
            yield record, one


def _about(record: Record, one: Record) -> list[str]:
    return [record["workload"], str(record["density"]), str(one["batch"])]


def _fastest(times: dict[str, float], names: tuple[str, ...]) -> list[float]:
    return [fastest(times, name)[0] for name in names]
