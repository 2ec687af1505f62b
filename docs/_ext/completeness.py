"""Warnings, and so a failed build, for what is public and not documented.

``completeness_modules`` are the modules whose ``__all__`` is public. ``completeness_overview`` is
the front page of the reference. It lists every function of the first of these modules; all other
names stand on it or on one of its pages. Sphinx's own ``coverage`` builder passes over what a
module imports from another, and so over all that ``sparseopt`` exports.
"""

import inspect
from collections.abc import Iterator

from docstrings import wrong_in
from public_names import PublicName, public_names
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    names = public_names(app.config.completeness_modules)
    overview = app.config.completeness_overview
    for complaint in missing(names, env, overview):
        logger.warning(complaint, location=overview)
    for name in names:
        for complaint in wrong_in(name):
            logger.warning("%s %s", name.path, complaint)


def missing(names: list[PublicName], env: BuildEnvironment, overview: str) -> Iterator[str]:
    """Yield what the reference, and its overview, leave out."""
    page_of = {name: page for name, _, _, page, *_ in env.get_domain("py").get_objects()}
    listed = {link["reftarget"] for link in env.get_doctree(overview).findall(pending_xref)}
    pages = env.toctree_includes.get(overview, [])
    front = names[0].path.rpartition(".")[0]
    for name in names:
        if not name.is_field and name.path not in page_of:
            yield f"{name.path} is public and not in the reference"
            continue
        if name.owner is not None or name.path in listed:
            continue
        is_front_function = inspect.isfunction(name.value) and name.path == f"{front}.{name.last}"
        if is_front_function or page_of[name.path] not in pages:
            yield f"{name.path} is public and not in the overview"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("completeness_modules", [], "env", types=frozenset({list}))
    app.add_config_value("completeness_overview", "index", "env", types=frozenset({str}))
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
