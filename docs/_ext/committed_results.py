"""The reports that benchmark runs left in the checkout, each as a page of its own.

Before the pages are read, one is written under `results/reports/` for every `report.md` below
`benchmarks/*/results/`, so that a report is in the docs as soon as it is committed.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

REPORT = "report.md"
PAGES = Path("results", "reports")
RELATIVE_IMAGE = re.compile(r"(!\[[^\]]*\]\()(?!https?://|/)([^)\s]+)")


def page_name(folder: Path, benchmarks: Path) -> str:
    """What the page of a folder's report is called, such as ``cifar-cpu``."""
    return "-".join(part for part in folder.relative_to(benchmarks).parts if part != "results")


def page_text(report: Path, pages: Path) -> str:
    """The report, its images found from the folder of the pages, its title told from others'."""
    folder = os.path.relpath(report.parent, pages)
    title, _, rest = report.read_text(encoding="utf-8").partition("\n")
    if report.parent.name != "results":
        title = f"{title}: `{report.parent.name}`"
    rest = RELATIVE_IMAGE.sub(rf"\g<1>{folder}/\g<2>", rest)
    # A number and its deviation belong on one line, however narrow the column.
    return f"{title}\n{rest}".replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def write_report_pages(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    benchmarks = docs.parent / "benchmarks"
    pages = docs / PAGES
    pages.mkdir(exist_ok=True)
    wanted = {
        pages / f"{page_name(report.parent, benchmarks)}.md": page_text(report, pages)
        for report in sorted(benchmarks.glob(f"*/results/**/{REPORT}"))
    }
    for page, text in wanted.items():
        # A page that is written again would be read again.
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in set(pages.glob("*.md")) - set(wanted):
        page.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_report_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
