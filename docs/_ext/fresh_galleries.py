"""Pages of tutorials and of the gallery are made again when anything that they show has changed.

Sphinx-Gallery runs a script again when the script has changed. What it prints also depends on the
library, on the scripts that it starts, and on the files that it reads.
"""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

from sphinx.application import Sphinx

GENERATED = "generated"
SHOWN = (
    "sparseopt/**/*.py",
    "docs/_ext/*.py",
    "docs/tutorials/workers/*.py",
    "benchmarks/cifar/results/cpu/results.jsonl",
)
# A script that is gone leaves its page behind, so their names count; what is in them is known.
SCRIPTS = ("docs/gallery/*.py", "docs/tutorials/*.py")
INSTALLED = ("torch", "matplotlib", "sphinx-gallery")


def digest(root: Path) -> str:
    """A hash of everything that generated pages depend on, apart from their own scripts."""
    found = hashlib.sha256()
    for name in INSTALLED:
        found.update(f"{name} {version(name)}\n".encode())
    for pattern in SCRIPTS:
        found.update(f"{sorted(path.name for path in root.glob(pattern))}\n".encode())
    for pattern in SHOWN:
        for path in sorted(root.glob(pattern)):
            found.update(f"{path.relative_to(root)}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def discard_stale_pages(app: Sphinx) -> None:
    generated = Path(app.srcdir) / GENERATED
    note, current = generated / "made-from.txt", digest(Path(app.srcdir).parent)
    if not note.is_file() or note.read_text(encoding="utf-8") != current:
        shutil.rmtree(generated, ignore_errors=True)
        generated.mkdir()
        note.write_text(current, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    # Before Sphinx-Gallery, which has the usual priority of 500.
    app.connect("builder-inited", discard_stale_pages, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
