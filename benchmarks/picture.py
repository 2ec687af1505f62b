"""The picture that README and docs open with: accuracy against measured time of training.

``python benchmarks/readme.py`` draws it from the committed results of the CIFAR benchmark.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from benchmarks.cifar import overview
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.common.environment import machines
from benchmarks.common.files import write_atomic

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "_static"
NAME = "accuracy-against-time"
#: Ink and paper of each theme. The background stays transparent; the paper is behind open marks.
THEMES = {"light": ("#1f2328", "#ffffff"), "dark": ("#e6edf3", "#0d1117")}
#: Pages that have colours of their own replace black and white.
THEMED = ("#000000", "#ffffff")
GRAY = "#8b949e"
#: Petroff 2021, "Accessible color sequences for data visualization", ten colours.
PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
#: Marks of networks that are not sparse, filled with the theme's paper.
MARKS = {"dense": "D", "small-dense": "s"}
SIZE = (6.4, 4.0)
#: Points of accuracy that are shown at least: a narrower axis would make much of little.
LEAST_RANGE = 5.0


class Point(NamedTuple):
    """One variant: where it stands, and how far its seeds spread."""

    method: str
    label: str
    minutes: float
    accuracy: float
    deviation: float
    seeds: int

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.2f}" if self.seeds > 1 else ""
        return f"{self.label} {self.accuracy:.2f}{spread} % after {self.minutes:.1f} minutes"


@dataclass(frozen=True)
class Source:
    """Protocols that differ in nothing but ``speed_up``, and what they say.

    Attributes:
        groups: The protocols.
        points: Every variant of theirs whose CPU time is known, the best accuracy first.
        folder: The name of the folder of results.
    """

    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    folder: str

    @property
    def weight(self) -> tuple[bool, int, int]:
        """Of two sources the greater one is shown: dense beside sparse first of all."""
        return self.has_dense, len(self.points), sum(point.seeds for point in self.points)

    @property
    def has_dense(self) -> bool:
        """Whether the dense network was trained by the same protocol."""
        return any(point.method == "dense" for point in self.points)

    @property
    def protocol(self) -> str:
        """What was trained, and on what."""
        about = ", ".join(self.groups[0].protocol["description"].split(", ")[:3])
        made = (record["environment"] for group in self.groups for record in group.records)
        return f"{about}; {machines(made)}"

    @property
    def words(self) -> str:
        """The whole picture in a sentence, for those who cannot see it."""
        return f"{self.protocol}. Test accuracy: {'; '.join(map(str, self.points))}."

    def caption(self, docs: str = "") -> str:
        """What stands below it; ``docs`` is how to come to the folder of the docs."""
        page = (
            f"{docs}results/reproduction.md"
            if self.has_dense
            else f"{docs}results/live-training.md"
        )
        seeds = max(point.seeds for point in self.points)
        return (
            f"Test accuracy against measured time of training: {self.protocol}; mean ± standard "
            f"deviation of up to {seeds} seeds. [How it was measured]({page})."
        )


def best_source(results: Path = overview.RESULTS) -> Source:
    """The committed results that say most about accuracy and time.

    Raises:
        LookupError: If no run of theirs recorded its CPU time.
    """
    found = [source for folder in overview.folders(results) for source in _sources(folder)]
    if not found:
        raise LookupError(f"no run below {results} recorded its CPU time")
    return max(found, key=lambda source: source.weight)


def _sources(folder: Path) -> Iterator[Source]:
    alike: dict[str, list[Group]] = {}
    for group in overview.groups(folder):
        alike.setdefault(_without_speed_up(group), []).append(group)
    for groups in alike.values():
        points = [point for group in groups for point in _points(group, len(groups) > 1)]
        if points:
            points.sort(key=lambda point: -point.accuracy)
            yield Source(tuple(groups), tuple(points), folder.name)


def _without_speed_up(group: Group) -> str:
    training = {**group.settings.get("training", {}), "speed_up": None}
    return json.dumps({**group.settings, "training": training}, sort_keys=True)


def _points(group: Group, is_one_of_several: bool) -> Iterator[Point]:
    for variant in overview.main_variants(group):
        minutes = group.cpu_minutes(variant)
        if minutes is not None:
            label = _label(group, variant) if is_one_of_several else variant.name
            mean, deviation = group.mean(variant, "accuracy.test"), group.std(variant)
            seeds = len(group.of(variant))
            yield Point(variant.method, label, minutes, 100 * mean, 100 * (deviation or 0.0), seeds)


def _label(group: Group, variant: Variant) -> str:
    fast = "with" if group.settings.get("training", {}).get("speed_up") else "without"
    return f"{variant.name}, {fast} speed_up"


def draw(source: Source, colors: tuple[str, str] = THEMED) -> Figure:
    """The picture, with colours of ink and paper."""
    ink, paper = colors
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    shades = _shades(source.points)
    for point in source.points:
        mark = MARKS.get(point.method)
        axes.errorbar(
            point.minutes,
            point.accuracy,
            yerr=point.deviation,
            fmt=mark or "o",
            color=shades[point],
            markerfacecolor=paper if mark else shades[point],
            markersize=9,
            markeredgewidth=2 if mark else 0,
            elinewidth=1.4,
            capsize=3,
            label=point.label,
        )
    axes.set_xlim(left=0)
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_RANGE - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("CPU time of the whole training, minutes on one core")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.25, color=GRAY)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    for text in figure.findobj(matplotlib.text.Text):
        text.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(GRAY)
    axes.tick_params(color=GRAY)
    return figure


def _shades(points: Sequence[Point]) -> Mapping[Point, str]:
    """Gray for networks that are not sparse; for others colours that all eyes tell apart."""
    palette = iter(PALETTE * len(points))
    return {point: GRAY if point.method in MARKS else next(palette) for point in points}


def path_of(theme: str) -> Path:
    """The file of the picture in a theme."""
    return FOLDER / f"{NAME}-{theme}.svg"


def written(source: Source) -> dict[Path, bytes]:
    """The files of the picture, one a theme; letters are shapes, which look alike everywhere."""
    files = {}
    for theme, colors in THEMES.items():
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": NAME, "svg.fonttype": "path"}):
            draw(source, colors).savefig(
                buffer,
                format="svg",
                transparent=True,
                metadata={"Date": None, "Creator": None, "Description": source.words},
            )
        files[path_of(theme)] = buffer.getvalue()
    return files


def write() -> None:
    """Draw the picture from the committed results."""
    for path, content in written(best_source()).items():
        write_atomic(path, content)
