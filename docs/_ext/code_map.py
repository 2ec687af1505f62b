"""A warning, and so a failed build, for every room that is not on the map of the code."""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def check_map_of_the_code(app: Sphinx, env: BuildEnvironment) -> None:
    page = Path(env.doc2path("maintaining/architecture")).read_text(encoding="utf-8")
    package = Path(app.srcdir).parent / "sparseopt"
    for path in sorted(package.iterdir()):
        room = f"{path.name}/" if (path / "__init__.py").is_file() else path.name
        if room.endswith((".py", "/")) and f"`sparseopt/{room}`" not in page:
            logger.warning(
                "sparseopt/%s is not on the map of the code",
                room,
                location="maintaining/architecture",
            )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check_map_of_the_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
