"""The ``measured-methods`` directive: what the committed CIFAR results say of some methods."""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

#: The runs of the presets' protocols; what else lies beside them chose their settings.
RESULTS = "benchmarks/cifar/results"
PRESETS = ("cpu", "paper")

Row = dict[str, str]


class MeasuredMethods(SphinxDirective):
    """A table of the rows that the reports have of some methods, of all where none is named.

    The argument is the methods' names in the reports, with commas between them.
    """

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = [name.strip() for name in self.arguments[0].split(",")] if self.arguments else []
        root = Path(self.env.srcdir).parent
        found = []
        for preset in PRESETS:
            report = root / RESULTS / preset / "report.md"
            if report.is_file():
                self.env.note_dependency(str(report))
                found += list(tables(report.read_text(encoding="utf-8"), names))
        text = "\n\n".join(found) or "No committed run on CIFAR has this method."
        return self.parse_text_to_nodes(f"{text}\n\n{LINK}" if found else text)


LINK = "[The protocol, and all figures](/results/reproduction.md)."


def tables(report: str, names: list[str]) -> Iterator[str]:
    """Yield a table for each protocol of a report that has one of the methods."""
    for title, section in parts(report, "## "):
        by_heading = dict(parts(section, "### "))
        if "Test accuracy" not in by_heading:
            continue
        rows = [
            row
            for row in read_table(by_heading["Test accuracy"])
            if not names or row["method"] in names
        ]
        if rows:
            beside = dict(parts(by_heading.get("Paired differences", ""), "#### "))
            differences = read_table(beside.get("Minus Static", ""))
            yield f"{title}. {protocol(section)}\n\n{accuracy_table(rows, differences)}"


def accuracy_table(rows: list[Row], differences: list[Row]) -> str:
    to_static = {key(row): f"{row['difference, points']} ({row['order']})" for row in differences}
    columns = (
        "method",
        "init",
        "density",
        "seeds",
        "test %",
        "minus Static, points",
        "train FLOPs",
    )
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        row = {**row, "minus Static, points": to_static.get(key(row), "-")}
        lines.append([row[column] for column in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def key(row: Row) -> tuple[str, str, str]:
    return row["method"], row["init"], row["density"]


def protocol(section: str) -> str:
    """Return the line that says what was trained, and that numbers are reduced if they are."""
    lines = [line for line in section.splitlines() if line.startswith(("Protocol:", "**These"))]
    return " ".join(lines)


def parts(text: str, heading: str) -> Iterator[tuple[str, str]]:
    """Yield title and text of each part under a heading of this level."""
    for part in re.split(rf"^{heading}", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        yield title.strip(), body


def read_table(text: str) -> list[Row]:
    """Return the rows of the first table in a text; empty if there is none."""
    lines = re.search(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    if lines is None:
        return []
    head, rule, *body = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines.group().strip().splitlines()
    ]
    if not all(set(cell) <= set("-: ") for cell in rule):
        raise ExtensionError(f"no table of a report: {lines.group()[:80]!r}")
    # The paper's own columns come again beside ours: the first of a name counts.
    return [dict(reversed(list(zip(head, row, strict=True)))) for row in body]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("measured-methods", MeasuredMethods)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
