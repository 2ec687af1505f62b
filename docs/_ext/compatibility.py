"""The directives of the compatibility page, which render what the tests proved.

`compatibility-overview`, `compatibility-part` and `compatibility-made-with` read the file that the
test suite writes; no result is typed.
"""

import json
from pathlib import Path

from compatibility_text import classes, made_with, overview, part
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

NAME = "compatibility.json"
COMMAND = f"python -m pytest --compatibility-report=docs/{NAME}"

logger = logging.getLogger(__name__)


class FromTests(SphinxDirective):
    """What is common to the directives: the file, and Markdown made from it."""

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / NAME
        self.env.note_dependency(str(file))
        if not file.is_file():
            return self.missing()
        lines = self.lines(json.loads(file.read_text(encoding="utf-8")))
        return self.parse_text_to_nodes("\n".join(lines))

    def missing(self) -> list[nodes.Node]:
        return []

    def lines(self, record: dict) -> list[str]:
        raise NotImplementedError


class Overview(FromTests):
    """The table of all parts. Where the file is missing it alone says so, once a page."""

    def missing(self) -> list[nodes.Node]:
        raise self.error(f"docs/{NAME} is missing. Make it, from the root, with: {COMMAND}")

    def lines(self, record: dict) -> list[str]:
        return overview(record)


class Part(FromTests):
    """The tests of one part; with `:classes:` a table by class of optimizer before them."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"classes": lambda _: True}  # noqa: RUF012  docutils' own way

    def lines(self, record: dict) -> list[str]:
        name = self.arguments[0]
        known = [entry["part"] for entry in record["parts"]]
        if name not in known:
            raise self.error(f"{name!r} is no part; the parts are {', '.join(known)}.")
        table = [*classes(record, name), ""] if "classes" in self.options else []
        return [*table, *part(record, name)]


class MadeWith(FromTests):
    """Versions, hardware, date, and the command."""

    def lines(self, record: dict) -> list[str]:
        return made_with(record, COMMAND)


def check_all_parts_are_shown(app: Sphinx, env: BuildEnvironment) -> None:
    file = Path(app.srcdir) / NAME
    if not file.is_file():
        return
    page = Path(env.doc2path("results/compatibility")).read_text(encoding="utf-8").splitlines()
    record = json.loads(file.read_text(encoding="utf-8"))
    wanted = [f"```{{compatibility-part}} {entry['part']}" for entry in record["parts"]]
    shown = [line for line in page if line.startswith("```{compatibility-part}")]
    if shown != wanted:
        logger.warning(
            "the page must show all parts once, in this order: %s",
            ", ".join(entry["part"] for entry in record["parts"]),
            location="results/compatibility",
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("compatibility-overview", Overview)
    app.add_directive("compatibility-part", Part)
    app.add_directive("compatibility-made-with", MadeWith)
    app.connect("env-check-consistency", check_all_parts_are_shown)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
