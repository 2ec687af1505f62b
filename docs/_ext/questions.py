"""Asks the search of the built site what people ask, and warns where it does not find their page.

The questions are in `questions.toml`. Search runs in the reader's browser, so that it takes Node.js
to run it here; where there is none, nothing is asked. If a build read only the pages that had
changed, nothing is asked either, because Sphinx then forgets the index entries of all other pages.
"""

import json
import shutil
import subprocess
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from benchmarks.cifar.settings import read_toml

QUESTIONS = "questions.toml"
SCRIPT = Path(__file__).with_name("site_search.js")
#: A reader looks at so many results.
FIRST = 3

logger = logging.getLogger(__name__)


def ask(site: Path, questions: dict[str, str]) -> list[str]:
    """What the search of a site does not answer.

    Args:
        site: The folder that it was built in.
        questions: The page that answers it, by question.
    """
    command = ["node", str(SCRIPT), str(site), *questions]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    complaints = []
    for (question, page), places in zip(questions.items(), json.loads(answer), strict=True):
        first = list(dict.fromkeys(place.partition("#")[0] for place in places))[:FIRST]
        if page not in first:
            complaints.append(f"the search for {question!r} leads to {first}, not to {page}")
    return complaints


def note_pages(app: Sphinx, env: BuildEnvironment, names: list[str]) -> None:
    app.all_pages_are_read = set(names) >= env.found_docs


def check_search(app: Sphinx, failure: Exception | None) -> None:
    if failure is not None or app.builder.name != "html":
        return
    if not app.all_pages_are_read:
        logger.info("the search was not asked: only pages that had changed were read")
        return
    if shutil.which("node") is None:
        logger.info("the search was not asked: there is no Node.js")
        return
    for complaint in ask(Path(app.outdir), read_toml(Path(app.srcdir) / QUESTIONS)):
        logger.warning(complaint)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-before-read-docs", note_pages)
    app.connect("build-finished", check_search)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
