"""The ``committed-results`` directive: the reports that benchmark runs left in the checkout."""

import os
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RELATIVE_IMAGE = re.compile(r"(!\[[^\]]*\]\()(?!https?://|/)([^)\s]+)")


class CommittedResults(SphinxDirective):
    """Include every ``report.md`` below a folder, or say that there is none.

    The argument is the folder, relative to the root of the checkout. Images of a report are found
    beside it.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        docs = Path(self.env.srcdir)
        folder = docs.parent / self.arguments[0]
        reports = sorted(folder.rglob("report.md"))
        if not reports:
            text = f"*No results are committed under `{self.arguments[0]}`.*"
            return self.parse_text_to_nodes(text)
        return [node for report in reports for node in self.include(report, docs)]

    def include(self, report: Path, docs: Path) -> list[nodes.Node]:
        self.env.note_dependency(str(report))
        folder = os.path.relpath(report.parent, docs / Path(self.env.docname).parent)
        text = RELATIVE_IMAGE.sub(rf"\g<1>{folder}/\g<2>", report.read_text(encoding="utf-8"))
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("committed-results", CommittedResults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
