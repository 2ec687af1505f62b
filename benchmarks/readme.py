"""Update the parts of the README that come from results and docs: ``python benchmarks/readme.py``.

The picture at the top of README and docs is drawn again too.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Write the tables and the picture of the README again, from the committed results and the docs.
"""
ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110
BLOCK = "<!-- results:{name} -->{text}<!-- end of results:{name} -->"
#: The page whose table of other libraries the README shows too.
COMPARED = ROOT / "docs" / "moving" / "compared.md"
TABLE = re.compile(
    r"<!-- The README copies the table. -->\n(.*?)<!-- End of the table. -->", re.DOTALL
)
LINK = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


def rewritten(readme: str) -> str:
    """The README with the committed results and the docs' table in it.

    Raises:
        ValueError: If the comments around one of the places are missing.
    """
    texts = {"picture": picture_text(), "gains": gains_text(), "compared": compared_text()}
    for name, text in texts.items():
        block = BLOCK.format(name=name, text=f"\n{text}\n")
        pattern = BLOCK.format(name=name, text=".*?")
        readme, count = re.subn(pattern, lambda _, block=block: block, readme, flags=re.DOTALL)
        if count != 1:
            raise ValueError(
                f"README.md has the comment <!-- results:{name} --> and its end {count} times "
                "instead of once"
            )
    return readme


def picture_text() -> str:
    """The picture for light and dark themes, with its description."""
    from benchmarks import picture

    source = picture.best_source()
    light, dark = (picture.path_of(theme).relative_to(ROOT).as_posix() for theme in picture.THEMES)
    image = (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{source.words}" src="{light}">\n'
        "</picture>"
    )
    return f"{image}\n\n{_wrapped(source.caption('docs/'))}"


def gains_text() -> str:
    """The tables of gains and costs."""
    from benchmarks import gains, processors

    tables = [*gains.lines("docs/"), *processors.lines(), _wrapped(processors.notes())]
    return "\n".join(tables).rstrip()


def compared_text() -> str:
    """The table of other libraries, with links relative to the README."""
    (found,) = TABLE.findall(COMPARED.read_text(encoding="utf-8"))
    page = COMPARED.relative_to(ROOT)

    def moved(link: re.Match[str]) -> str:
        return f"]({posixpath.normpath(posixpath.join(page.parent.as_posix(), link[1]))})"

    return LINK.sub(moved, found).replace("](#", f"]({page.as_posix()}#").rstrip()


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, and the picture in it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks/readme.py", description=DESCRIPTION)
    parser.parse_args(arguments)
    from benchmarks import picture

    readme = ROOT / "README.md"
    readme.write_text(rewritten(readme.read_text(encoding="utf-8")), encoding="utf-8")
    picture.write()
    print(f"wrote {readme.relative_to(ROOT)} and its picture")
    return 0


if __name__ == "__main__":
    # Python puts the script's folder first in sys.path; the package is imported from the root.
    sys.path[0] = str(ROOT)
    from benchmarks.common.start import start

    start("benchmarks.readme")
