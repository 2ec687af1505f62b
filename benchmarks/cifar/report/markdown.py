"""The few forms of Markdown that the report is made of."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cifar.report.summary import Variant, title

MISSING = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table and an empty one; nothing where there are no rows."""
    if not rows:
        return []
    lines = [header, ["---"] * len(header), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def section(heading: str, *parts: Sequence[str]) -> list[str]:
    """A heading and what stands below it; nothing where nothing does."""
    lines = [line for part in parts for line in part]
    return [f"### {heading}", "", *lines] if any(lines) else []


def paragraph(text: str) -> list[str]:
    """One paragraph."""
    return [text, ""]


def names(variant: Variant) -> list[str]:
    """The cells that say which variant a row is about: method, init, density."""
    density = MISSING if variant.density is None else f"{variant.density:.3g}"
    init = MISSING if variant.init is None else title(variant.init)
    changed = "".join(f", {name} {value:.3g}" for name, value in variant.settings)
    return [title(variant.method) + changed, init, density]


def multiple(value: float | None) -> str:
    """A multiple of the dense network's, such as ``0.161x``."""
    return MISSING if value is None else f"{value:.3f}x"
