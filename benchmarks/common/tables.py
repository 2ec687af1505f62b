"""The few Markdown elements of which reports are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MISSING = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table and an empty line; no lines if there are no rows."""
    if not rows:
        return []
    lines = [header, ["---"] * len(header), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def table_of(rows: Iterable[Mapping[str, str]], columns: Sequence[str] = ()) -> list[str]:
    """The lines of a table from rows that map columns to cells; ``columns`` may select some.

    Raises:
        KeyError: If no row has one of ``columns``.

    Example:
        >>> table_of([{"a": "1"}, {"a": "2", "b": "3"}])
        ['| a | b |', '| --- | --- |', '| 1 | - |', '| 2 | 3 |', '']
    """
    cells = list(rows)
    gaps = {name: MISSING for row in cells for name in row}
    header = columns or tuple(gaps)
    return table(header, [[{**gaps, **row}[name] for name in header] for row in cells])


def section(heading: str, *parts: Sequence[str]) -> list[str]:
    """A heading and the lines below it; no lines at all if there is nothing below it."""
    lines = [line for part in parts for line in part]
    return [f"### {heading}", "", *lines] if any(lines) else []


def paragraph(text: str) -> list[str]:
    """One paragraph."""
    return [text, ""]


def span(values: Iterable[float], digits: int = 2) -> str:
    """The range of some numbers, or one number if all of them round to it.

    Example:
        >>> span([0.106, 0.103, 0.1]), span([1.04, 1.0], digits=1)
        ('0.10 to 0.11', '1.0')
    """
    found = sorted(values)
    ends = dict.fromkeys(f"{value:.{digits}f}" for value in (found[0], found[-1]))
    return " to ".join(ends)
