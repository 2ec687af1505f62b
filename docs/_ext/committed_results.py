"""The reports that benchmark runs left in the checkout, each as a page of its own.

Before the pages are read, one is written under `results/reports/` for every `report.md` below
`benchmarks/*/results/`, so that a report is in the docs as soon as it is committed. A long report
has a page for each of its sections, in a folder of its name.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

REPORT = "report.md"
PAGES = Path("results", "reports")
RELATIVE_IMAGE = re.compile(r"(!\[[^\]]*\]\()(?!https?://|/)([^)\s]+)")
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
NOT_IN_A_NAME = re.compile(r"[^a-z0-9.]+")
#: Leaves a report out of the search, so that the search finds the pages that explain its numbers.
NOT_SEARCHED = "---\nnosearch: true\n---\n"
#: A report of more words is split into a page for each section.
LONG = 12_000
SECTIONS = """
```{{toctree}}
:maxdepth: 1

{entries}
```
"""


def page_name(folder: Path, benchmarks: Path) -> str:
    """What the page of a folder's report is called, such as ``cifar-cpu``."""
    return "-".join(part for part in folder.relative_to(benchmarks).parts if part != "results")


def pages_of(report: Path, folder: Path, name: str) -> dict[Path, str]:
    """The pages of a report, by their files in ``folder``; the page ``name`` comes first."""
    title, _, text = report.read_text(encoding="utf-8").partition("\n")
    if report.parent.name != "results":
        title = f"{title}: `{report.parent.name}`"
    page = folder / f"{name}.md"
    if len(text.split()) <= LONG:
        return {page: _placed(f"{title}\n{text}", report, folder)}
    beginning, *rest = SECTION.split(text)
    sections = {_slug(heading): (heading, body) for heading, body in _pairs(rest)}
    entries = "\n".join(f"{name}/{slug}" for slug in sections)
    beginning += SECTIONS.format(entries=entries)
    found = {page: _placed(f"{title}\n{beginning}", report, folder)}
    for slug, (heading, body) in sections.items():
        # What was below the section is one level higher on its own page.
        body = re.sub(r"^#(#+ )", r"\1", body, flags=re.MULTILINE)
        text = _placed(f"# {heading}\n{body}", report, folder / name)
        found[folder / name / f"{slug}.md"] = text
    return found


def _pairs(parts: list[str]) -> Iterator[tuple[str, str]]:
    return zip(parts[::2], parts[1::2], strict=True)


def _slug(heading: str) -> str:
    return NOT_IN_A_NAME.sub("-", heading.lower()).strip("-")


def _placed(text: str, report: Path, folder: Path) -> str:
    """The text of a page, its images found from the page's folder."""
    place = os.path.relpath(report.parent, folder)
    text = RELATIVE_IMAGE.sub(rf"\g<1>{place}/\g<2>", text)
    # A number and its deviation belong on one line, however narrow the column.
    return NOT_SEARCHED + text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def write_report_pages(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    benchmarks = docs.parent / "benchmarks"
    pages = docs / PAGES
    wanted: dict[Path, str] = {}
    for report in sorted(benchmarks.glob(f"*/results/**/{REPORT}")):
        wanted |= pages_of(report, pages, page_name(report.parent, benchmarks))
    for page, text in wanted.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        # A page that is written again would be read again.
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in set(pages.glob("**/*.md")) - set(wanted):
        page.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_report_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
