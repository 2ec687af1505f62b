"""The `mask-update-figure` directive, which draws a real mask update when the page is built."""

import runpy
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DRAWING = Path("figures", "mask_update.py")


class MaskUpdateFigure(SphinxDirective):
    """One update of a small layer."""

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / DRAWING
        self.env.note_dependency(str(file))
        return [nodes.raw("", runpy.run_path(str(file))["drawing"](), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("mask-update-figure", MaskUpdateFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
