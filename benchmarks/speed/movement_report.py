"""The report's section on channels that have ever been live, and its figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.figures import legend_beside, save
from benchmarks.common.tables import MISSING, paragraph, table
from benchmarks.speed.records import Record, made_with

FIGURE = "movement"
#: The method whose neurons hardly ever go out, so that weights show what moves.
NEURONS = "srigl"
COLUMNS = (
    "channels ever live",
    "layers in which more became live",
    "live in the end",
    "inner channels without gradient",
    "others without gradient",
    "loss, first and last",
)


def report_lines(records: Sequence[Record], folder: Path) -> list[str]:
    """A subsection for each data set, network and density; the figures go into ``folder``."""
    lines = ["## Masks that move", ""]
    lines += paragraph(
        "A short training, and after each update the channels of each layer that are live or have "
        "ever been. A channel of `srigl` is a neuron, a filter with live weights; what moves there "
        "is weights, and so their share is drawn. *Naive* masks "
        "filters alone, with as many of them live as in `rigl-struct`, and grows those whose "
        "gradient is largest. A layer is *inner* if nothing is added to what it makes, so that "
        "normalisation and ReLU come next. *Without gradient* counts, over all updates, the "
        "dropped channels for which what growth goes by is exactly zero: the gradient of the "
        "filter for *naive*, of the columns that read the channel for `rigl-struct`, in whose "
        "update steps dropped channels have fresh filters."
    )
    for together in _comparable(records):
        movement = together[0]["movement"]
        name = "-".join(str(movement[key]) for key in ("data", "workload", "density"))
        heading = f"{movement['workload']} on {movement['data']}, density {movement['density']}"
        lines += [f"### Movement: {heading}", ""]
        lines += paragraph(made_with(together[0]))
        lines += paragraph(_described(movement))
        rows = [[record["movement"]["method"], *cells(record)] for record in together]
        lines += table(["method", *COLUMNS], rows)
        draw(together, heading, folder / f"{FIGURE}-{name}")
        lines += paragraph(f"![channels ever live in each layer, {heading}]({FIGURE}-{name}.png)")
    return lines


def _comparable(records: Iterable[Record]) -> list[list[Record]]:
    """Bring records together that differ in nothing but the method."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        others = {key: value for key, value in record["movement"].items() if key != "method"}
        groups.setdefault(tuple(others.items()), []).append(record)
    return list(groups.values())


def _described(movement: Record) -> str:
    return (
        f"{movement['steps']} steps of {movement['batch_size']} images, an update every "
        f"{movement['delta_t']} until three quarters, alpha {movement['alpha']}, SGD with momentum "
        f"{movement['momentum']} and a one-cycle schedule up to {movement['lr']}, weight decay "
        f"{movement['weight_decay']}, seed {movement['seed']}, uniform distribution."
    )


def cells(record: Record) -> list[str]:
    """What one run says in ``COLUMNS``."""
    channels = sum(record["channels"].values())
    first, last = record["updates"][0], record["updates"][-1]
    moving = "weights" if record["movement"]["method"] == NEURONS else "ever"
    grew = [name for name in record["channels"] if last[moving][name] > first[moving][name]]
    inner = set(record["inner"])
    return [
        " -> ".join(f"{sum(one['ever'].values()) / channels:.1%}" for one in (first, last)),
        f"{len(grew)} of {len(record['channels'])}",
        f"{sum(last['live'].values()) / channels:.1%}",
        _silent(record, inner),
        _silent(record, record["channels"].keys() - inner),
        f"{record['first_loss']:.2f}, {record['last_loss']:.2f}",
    ]


def _silent(record: Record, names: Iterable[str]) -> str:
    pairs = [
        update["silent"][name]
        for update in record["updates"]
        for name in names
        if name in update["silent"]
    ]
    dropped = sum(count for _, count in pairs)
    return f"{sum(silent for silent, _ in pairs) / dropped:.1%}" if dropped else MISSING


def draw(records: Sequence[Record], heading: str, path: Path) -> None:
    """Write a panel for each method, with a line for each layer, as ``.png`` and ``.svg``."""
    figure = Figure(figsize=(3.2 * len(records) + 2.4, 4), layout="constrained")
    figure.suptitle(f"Channels ever live ({heading})", fontsize=10, fontweight="bold")
    panels = list(figure.subplots(1, len(records), sharey=True, squeeze=False).flat)
    names = list(dict.fromkeys(name for record in records for name in record["channels"]))
    for axes, record in zip(panels, records, strict=True):
        _panel(axes, record, names)
    panels[0].set_ylabel("share that was ever live")
    legend_beside(figure, panels)
    save(figure, path)


def _panel(axes: Axes, record: Record, names: Sequence[str]) -> None:
    method = record["movement"]["method"]
    steps = [update["step"] for update in record["updates"]]
    shades = matplotlib.colormaps["viridis"]
    for name, channels in record["channels"].items():
        shares = [
            update["weights"][name] if method == NEURONS else update["ever"][name] / channels
            for update in record["updates"]
        ]
        color = shades(names.index(name) / max(1, len(names) - 1))
        axes.plot(steps, shares, color=color, linewidth=1.1, label=name.removesuffix(".weight"))
    axes.set_title(method + (" (weights)" if method == NEURONS else ""), fontsize=9)
    axes.set_xlabel("training step")
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
