"""The picture that README and docs open with: accuracy against measured time of training.

``python benchmarks/readme.py`` draws it from the committed results of the CIFAR benchmark.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from benchmarks.cifar import overview
from benchmarks.cifar.records import Folder, read_results
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.structured import Times, times_of
from benchmarks.common.environment import machines
from benchmarks.common.files import write_atomic

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "_static"
NAME = "accuracy-against-time"
#: Colours of ink and paper in each theme. The background is transparent; paper fills hollow marks.
THEMES = {"light": ("#1f2328", "#ffffff"), "dark": ("#e6edf3", "#0d1117")}
#: Pages that have colours of their own replace black and white.
THEMED = ("#000000", "#ffffff")
GRAY = "#8b949e"
#: Petroff 2021, "Accessible color sequences for data visualization", ten colours.
PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
#: Marks of networks that are not sparse, filled with the theme's paper colour.
MARKS = {"dense": "D", "small-dense": "s"}
SIZE = (6.4, 4.0)
#: The least range of the accuracy axis, in points: a narrower axis would exaggerate differences.
LEAST_RANGE = 5.0


class Unit(NamedTuple):
    """A unit of training time: its words on the axis and after a number."""

    axis: str
    after: str
    digits: int


MINUTES = Unit("CPU time of the whole training, minutes on one core", "minutes", 1)
DENSE = Unit(
    "measured time of the whole training, multiple of the dense network's", "of the time", 2
)


class Point(NamedTuple):
    """One variant: its time, its accuracy, and the spread over its seeds."""

    method: str
    label: str
    time: float
    accuracy: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Source:
    """Protocols that differ only in ``speed_up``, and their results.

    Attributes:
        groups: The protocols.
        points: All variants whose time is known, the best accuracy first.
        unit: The unit of the times.
        machine: The machine of the measurement.
        folder: The name of the folder of results.
    """

    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    unit: Unit
    machine: str
    folder: str

    @property
    def weight(self) -> tuple[bool, bool, bool, int, int]:
        """The order of sources: the greatest is shown.

        A source with ``speed_up`` comes first, then one with the dense network, then one whose
        times were measured in turn with the dense network's, because other work slows down long
        trainings.
        """
        is_fast = any(map(_has_speed_up, self.groups))
        is_in_turn = self.unit is DENSE
        seeds = sum(point.seeds for point in self.points)
        return is_fast, self.has_dense, is_in_turn, len(self.points), seeds

    @property
    def has_dense(self) -> bool:
        """Whether the dense network was trained by the same protocol."""
        return any(point.method == "dense" for point in self.points)

    @property
    def protocol(self) -> str:
        """The network and its training, and the machine of the times."""
        protocol = self.groups[0].protocol
        about = ", ".join(protocol["description"].split(", ")[:3])
        kind = " (a reduced protocol)" if protocol["reduced"] else ""
        return f"{about}{kind}; times on {self.machine}"

    @property
    def words(self) -> str:
        """The full picture in a sentence, for readers who cannot see it."""
        return f"{self.protocol}. Test accuracy: {'; '.join(map(self._said, self.points))}."

    def _said(self, point: Point) -> str:
        spread = f" ± {point.deviation:.2f}" if point.seeds > 1 else ""
        time = f"{point.time:.{self.unit.digits}f} {self.unit.after}"
        return f"{point.label} {point.accuracy:.2f}{spread} % in {time}"

    def caption(self, docs: str = "") -> str:
        """The caption below the picture; ``docs`` is the path to the folder of the docs."""
        page = "reproduction" if self.has_dense else "live-training"
        most = max(point.seeds for point in self.points)
        seeds = "one seed each" if most == 1 else f"mean ± standard deviation of up to {most} seeds"
        return (
            f"Test accuracy against measured time of training: {self.protocol}; {seeds}. [How it "
            f"was measured]({docs}results/{page}.md)."
        )


def best_source(results: Path = overview.RESULTS) -> Source:
    """The most informative committed results about accuracy and time.

    Raises:
        LookupError: If no run has a known time.
    """
    found = [source for folder in overview.folders(results) for source in _sources(folder)]
    if not found:
        raise LookupError(f"no run below {results} was timed or recorded its CPU time")
    return max(found, key=lambda source: source.weight)


def _sources(folder: Path) -> Iterator[Source]:
    timings = read_results(Folder(folder).timings)
    alike: dict[str, list[Group]] = {}
    for group in overview.groups(folder):
        alike.setdefault(_without_speed_up(group), []).append(group)
        timed = times_of(group, timings)
        if timed:
            times = partial(_multiple, group, timed[0])
            yield from _source([group], [times], DENSE, timed[0].machine, folder)
    for groups in alike.values():
        made = machines(
            record["environment"]
            for group in groups
            for variant in overview.main_variants(group)
            for record in group.timed(variant)
        )
        minutes = [group.cpu_minutes for group in groups]
        yield from _source(groups, minutes, MINUTES, made, folder)


def _multiple(group: Group, times: Times, variant: Variant) -> float | None:
    """The measured time of a training, as a multiple of the dense network's."""
    if variant == group.dense():
        return 1.0
    ratio = times.ratio(group, variant)
    return None if ratio is None else ratio.mean


def _source(
    groups: Sequence[Group],
    times: Sequence[Callable[[Variant], float | None]],
    unit: Unit,
    machine: str,
    folder: Path,
) -> Iterator[Source]:
    """The source with these protocols, if the time of any variant is known."""
    points = [
        _point(group, variant, time, len(groups) > 1)
        for group, time_of in zip(groups, times, strict=True)
        for variant in overview.main_variants(group)
        if (time := time_of(variant)) is not None
    ]
    if points:
        points.sort(key=lambda point: -point.accuracy)
        yield Source(tuple(groups), tuple(points), unit, machine, folder.name)


def _point(group: Group, variant: Variant, time: float, is_one_of_several: bool) -> Point:
    label = variant.name
    if is_one_of_several:
        label += f", {'with' if _has_speed_up(group) else 'without'} speed_up"
    mean, deviation = group.mean(variant, "accuracy.test"), group.std(variant) or 0.0
    seeds = len(group.of(variant))
    return Point(variant.method, label, time, 100 * mean, 100 * deviation, seeds)


def _has_speed_up(group: Group) -> bool:
    return bool(group.settings.get("training", {}).get("speed_up"))


def _without_speed_up(group: Group) -> str:
    training = {**group.settings.get("training", {}), "speed_up": None}
    return json.dumps({**group.settings, "training": training}, sort_keys=True)


def draw(source: Source, colors: tuple[str, str] = THEMED) -> Figure:
    """The picture, with colours of ink and paper."""
    ink, paper = colors
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    shades = _shades(source.points)
    for point in source.points:
        mark = MARKS.get(point.method)
        axes.errorbar(
            point.time,
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
    axes.set_xlabel(source.unit.axis)
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
    """Gray for networks that are not sparse; the other colours suit colour-blind readers."""
    palette = iter(PALETTE * len(points))
    return {point: GRAY if point.method in MARKS else next(palette) for point in points}


def path_of(theme: str) -> Path:
    """The file of the picture in a theme."""
    return FOLDER / f"{NAME}-{theme}.svg"


def written(source: Source) -> dict[Path, bytes]:
    """The files of the picture, one for each theme. Text is drawn as paths, so it needs no font."""
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
