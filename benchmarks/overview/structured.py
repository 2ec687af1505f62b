"""What removed channels and condensed layers give in time, in short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common.tables import table
from benchmarks.structured.report.movement import COLUMNS as MOVEMENT_COLUMNS
from benchmarks.structured.report.movement import cells as movement_cells
from benchmarks.structured.report.training import MODELS, average_steps

Record = dict[str, Any]

#: What the columns of the two tables of times are.
COLUMNS = (
    "Inference of compacted models above, whole training steps by `CompactedTraining` below; *made "
    "by hand* is dense code of the same shapes. [What is compared, and how]"
    "(docs/results/structured.md#time-of-compacted-models)."
)

RESULTS = Path(__file__).parents[1] / "structured" / "results"


def records(folder: Path = RESULTS) -> list[Record]:
    """All results files of the folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def channel_table(found: list[Record]) -> list[str]:
    """FLOPs and time of compacted models, as multiples of the dense one's."""
    rows = [
        [
            record["workload"],
            str(record["density"]),
            str(one["batch"]),
            f"{record['flops_ratio']:.3f}",
            f"{fastest(one, 'compacted') / fastest(one, 'dense'):.3f}",
            f"{fastest(one, 'by hand') / fastest(one, 'dense'):.3f}",
        ]
        for record in found
        if "inference" in record
        for one in record["inference"]
    ]
    return table(["model", "density", "batch", "FLOPs", "time", "time, made by hand"], rows)


def training_table(found: list[Record]) -> list[str]:
    """Time of an average training step, as a multiple of the dense model's."""
    rows = []
    for record in found:
        for one in record.get("training", ()):
            average = {"milliseconds": average_steps(one["milliseconds"])}
            dense, *others = (fastest(average, name) for name in MODELS)
            times = [f"{time / dense:.3f}" for time in others]
            rows.append([record["workload"], str(record["density"]), str(one["batch"]), *times])
    header = ["model", "density", "batch", "masked", "without dropped channels"]
    return table([*header, "made by hand"], rows)


def movement_table(found: list[Record]) -> list[str]:
    """Channels that have ever been live, and dropped ones that growth knows nothing of."""
    rows = []
    for record in found:
        if "movement" not in record:
            continue
        movement = record["movement"]
        about = [movement["method"], movement["workload"], movement["data"]]
        rows.append([*about, str(movement["density"]), *movement_cells(record)])
    return table(["method", "model", "images", "density", *MOVEMENT_COLUMNS], rows)


def linear_table(found: list[Record]) -> list[str]:
    """How much faster than the fastest dense way a sparse linear layer is."""
    rows = []
    for record in found:
        for one in record.get("linear", ()):
            dense, sparse = (min(one[kind].values()) for kind in ("dense", "sparse"))
            shape = " x ".join(map(str, one["shape"]))
            speed = f"{dense / sparse:.2f}"
            rows.append([shape, str(one["density"]), str(one["rows"]), speed, one["chosen"]])
    return table(["in x out", "density", "rows", "dense time / sparse time", "chosen"], rows)


def machines(found: list[Record]) -> str:
    """What was measured on, in a phrase."""
    about = (record["environment"] for record in found)
    machines = (
        f"{one['processor']}, {one['threads']} threads, torch {one['torch']}" for one in about
    )
    return "; ".join(dict.fromkeys(machines))


def fastest(one: Record, name: str) -> float:
    """Milliseconds of the fastest precision and memory format of ``name``."""
    times = one["milliseconds"].items()
    return float(min(value for key, value in times if key.startswith(name)))
