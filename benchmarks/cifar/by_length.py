"""How far each method is ahead of Static after short, longer and published training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.cifar.overview import RESULTS, folders, groups, headline
from benchmarks.cifar.report.paper import paper_of
from benchmarks.cifar.report.phases import REFERENCE
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.stats import difference
from benchmarks.cifar.report.texts import title
from benchmarks.common.tables import MISSING, table_of

METHODS = ("set", "rigl", "rigl-10-batches")
INIT, DENSITY = "erk", 0.1
#: The settings that two lengths of one training share; all others are scaled with the length.
SHARED = ("dataset", "model", "augmentation", "optimizer")


def length_table(results: Path = RESULTS) -> list[str]:
    """A row for each length of the headline's training, the shortest first, then published rows."""
    main = headline(results)[-1]
    found = {id(group): group for group in _of_same_network(main, results)}
    rows = [_row(group) for group in sorted(found.values(), key=_epochs)]
    return table_of([*rows, *_published(main)])


def _of_same_network(main: Group, results: Path) -> Iterator[Group]:
    for folder in folders(results):
        for group in groups(folder):
            is_same = all(group.settings.get(one) == main.settings.get(one) for one in SHARED)
            if is_same and _variant(REFERENCE) in group and _variant("rigl") in group:
                yield group


def _epochs(group: Group) -> int:
    return int(group.settings["training"]["epochs"])


def _variant(method: str) -> Variant:
    return Variant(method, INIT, DENSITY)


def _row(group: Group) -> dict[str, str]:
    row = {"epochs": str(_epochs(group)), "Static, %": group.percent(_variant(REFERENCE))}
    for method in METHODS:
        found = difference(group, _variant(method), _variant(REFERENCE))
        seeds = "" if found is None else f" ({len(found.by_seed)})"
        row[_heading(method)] = MISSING if found is None else f"{found}{seeds}"
    return row


def _published(group: Group) -> Iterator[dict[str, str]]:
    """A row for each source that published both Static and another method."""
    paper = paper_of(group)
    if paper is None:
        return
    for static in paper.of(_variant(REFERENCE)):
        row = {"epochs": f"published [{static.source}]", "Static, %": str(static.accuracy)}
        for method in METHODS:
            same = [one for one in paper.of(_variant(method)) if one.source == static.source]
            row[_heading(method)] = f"{same[0].accuracy - static.accuracy:+}" if same else MISSING
        yield row


def _heading(method: str) -> str:
    return f"{title(method)} minus Static"
