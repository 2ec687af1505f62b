"""The figure of channels that have ever been live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.common.figures import legend_beside, save

Record = dict[str, Any]


def draw(records: Sequence[Record], heading: str, path: Path) -> None:
    """Write a panel for each method, with a line for each layer, as ``.png`` and ``.svg``.

    Args:
        records: runs that differ in the method.
        heading: what they have in common.
        path: where to, without a suffix.
    """
    figure = Figure(figsize=(3.2 * len(records) + 2.4, 4), layout="constrained")
    figure.suptitle(f"Channels ever live ({heading})", fontsize=10, fontweight="bold")
    panels = list(figure.subplots(1, len(records), sharey=True, squeeze=False).flat)
    names = list(dict.fromkeys(name for record in records for name in record["channels"]))
    shades = matplotlib.colormaps["viridis"]
    for axes, record in zip(panels, records, strict=True):
        of_weights = record["movement"]["method"] == "srigl"
        steps = [update["step"] for update in record["updates"]]
        for name, channels in record["channels"].items():
            axes.plot(
                steps,
                [
                    update["weights"][name] if of_weights else update["ever"][name] / channels
                    for update in record["updates"]
                ],
                color=shades(names.index(name) / max(1, len(names) - 1)),
                linewidth=1.1,
                label=name.removesuffix(".weight"),
            )
        title = record["movement"]["method"] + (" (weights)" if of_weights else "")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("training step")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share that was ever live")
    legend_beside(figure, panels)
    save(figure, path)
