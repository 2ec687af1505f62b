"""Compiles the kernels while a wheel is built, where there is a compiler.

Such a wheel is for one platform and for every Python, because the kernels know neither Python's nor
torch's headers. Without a compiler the wheel is pure, and the kernels are compiled at first use.
``SPARSEOPT_PREBUILT=0`` makes a pure wheel in any case, ``SPARSEOPT_PREBUILT=1`` fails rather than
make one. An editable install compiles nothing.

On GitHub, the metadata name the repository that is built from, and the links of the README lead
there; nothing here says where the repository is.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SETTING = "SPARSEOPT_PREBUILT"
BUILD = Path("sparseopt", "speedup", "kernels", "build.py")
#: Links and pictures of the README that are found from the root of the repository.
RELATIVE = re.compile(r"""(\]\(|src="|srcset=")(?!https?://|#|\.\./)""")
GITHUB = "../../"


class PrebuiltKernels(BuildHookInterface[Any]):
    """Adds a binary for every instruction set of this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say in ``build_data`` what the wheel holds and where it runs."""
        setting = os.environ.get(SETTING, "")
        if setting not in {"", "0", "1"}:
            raise ValueError(f"{SETTING} must be 0, 1 or unset, not {setting!r}")
        if version == "editable" or setting == "0":
            return
        root = Path(self.root)
        build = _load(root / BUILD)
        compiler = build.find_compiler()
        variants = build.VARIANTS.get(platform.machine(), ()) if sys.platform == "linux" else ()
        if compiler is None or not variants:
            self._stay_pure("no C++ compiler" if variants else "no kernels for this platform")
            return
        # The files are read after this method has returned.
        self._scratch = tempfile.TemporaryDirectory(prefix="sparseopt-kernels-")
        made, failed = _compile(build, compiler, variants, Path(self._scratch.name))
        if failed and (self.required or not made):
            self._stay_pure("; ".join(failed))
            return
        for reason in failed:
            self.app.display_warning(f"a wheel without one of the instruction sets: {reason}")
        folder = build.PREBUILT.relative_to(root)
        for path in made:
            build_data["force_include"][str(path)] = f"{folder}/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled; the wheel has it."""
        scratch = getattr(self, "_scratch", None)
        if scratch is not None:
            scratch.cleanup()

    @property
    def required(self) -> bool:
        """Whether a wheel without all kernels is an error."""
        return os.environ.get(SETTING) == "1"

    def _stay_pure(self, reason: str) -> None:
        if self.required:
            raise RuntimeError(f"{SETTING}=1, and the kernels can't be compiled: {reason}")
        self.app.display_warning(f"a wheel without compiled kernels: {reason}")


class Repository(MetadataHookInterface):
    """Says where the repository is, if the builder does, and has the README's links lead there."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the addresses of the project, and the text of its page."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        name = os.environ.get("GITHUB_REPOSITORY")
        if name is not None:
            repository = f"{os.environ['GITHUB_SERVER_URL']}/{name}"
            metadata["urls"] = {
                "Repository": repository,
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
            text = absolute(text, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(readme: str, repository: str) -> str:
    """The README with links that lead to a repository from anywhere, and pictures from there."""
    readme = readme.replace(GITHUB, f"{repository}/")

    def at(link: re.Match[str]) -> str:
        return f"{link[1]}{repository}/{'blob' if link[1] == '](' else 'raw'}/main/"

    return RELATIVE.sub(at, readme)


def _compile(
    build: ModuleType, compiler: str, variants: Sequence[str], folder: Path
) -> tuple[list[Path], list[str]]:
    """Return the binaries made in ``folder``, and why others were not: old compilers know less."""
    paths = {one: folder / build.prebuilt_path(one).name for one in variants}
    made, failed = [], []
    with ThreadPoolExecutor() as pool:
        jobs = {
            path: pool.submit(build.compile_variant, variant, compiler, path)
            for variant, path in paths.items()
        }
    for path, job in jobs.items():
        try:
            job.result()
            made.append(path)
        except build.BuildError as error:
            failed.append(f"{path.stem}: {error}")
    return made, failed


def _platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _load(path: Path) -> ModuleType:
    """A module by its file, without the package around it, which needs torch."""
    spec = importlib.util.spec_from_file_location("sparseopt_kernels_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
