"""Compiling the C++ of the kernels: at first use into a cache, or while a wheel is built.

Imports the standard library only, so that a build hook can load it by its path, without torch.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "VARIANTS",
    "BuildError",
    "compile_variant",
    "compiled",
    "find_compiler",
    "path_if_built",
    "prebuilt_path",
    "source_hash",
]

logger = logging.getLogger("sparseopt")

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
PREBUILT = HERE / "prebuilt"

VARIANTS: dict[str, tuple[str, ...]] = {
    "x86_64": ("avx512_bf16", "avx512", "avx2"),
    "aarch64": ("neon",),
}
"""The instruction sets that there is a binary for, by machine, best first."""

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "neon": (),
}
# Contraction makes multiply-adds of products and sums. Nothing else departs from IEEE arithmetic.
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
)


class BuildError(RuntimeError):
    """The compiler is not there, or it failed; the message is one line."""


def find_compiler() -> str | None:
    """The C++ compiler: the environment's ``CXX``, else the first of g++, c++ and clang++."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["g++", "c++", "clang++"]
    for candidate in candidates:
        # A CXX such as "ccache g++" carries arguments.
        if shutil.which(shlex.split(candidate)[0]) is not None:
            return candidate
    return None


def source_hash() -> str:
    """Ten hexadecimal digits that change with the source and with the flags."""
    digest = hashlib.sha256(repr((_FLAGS, _INSTRUCTIONS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def prebuilt_path(variant: str) -> Path:
    """Where a binary that came with the package lies; its name says which source it is of."""
    return PREBUILT / f"{variant}-{source_hash()}.so"


def compile_variant(variant: str, compiler: str, destination: Path) -> None:
    """Compile the kernels for one instruction set.

    The file appears whole or not at all.

    Args:
        variant: An instruction set of :data:`VARIANTS`.
        compiler: A command, as :func:`find_compiler` gives it.
        destination: The shared library to write.

    Raises:
        BuildError: The compiler could not be started, or it failed.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".build-") as folder:
        scratch = Path(folder) / destination.name
        command = [
            *shlex.split(compiler),
            *_FLAGS,
            *_INSTRUCTIONS[variant],
            str(SOURCES / "kernels.cpp"),
            "-o",
            str(scratch),
        ]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"{compiler} could not be started: {error}") from error
        if result.returncode:
            logger.info("%s", result.stderr)
            raise BuildError(f"{compiler} failed: {_first_error(result)}")
        scratch.replace(destination)


def _first_error(result: subprocess.CompletedProcess[str]) -> str:
    """One line that says what a compiler stumbled over."""
    lines = result.stderr.splitlines() or [f"exit status {result.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def compiled(variant: str) -> Path:
    """The kernels for one instruction set, compiled now if no earlier process has done so.

    Many processes may ask at once: one compiles, the others wait for it.

    Raises:
        BuildError: There is no compiler, it failed, or the cache can not be written.
    """
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        raise BuildError(
            f"the compiler named by CXX ({named}) was not found"
            if named
            else "no C++ compiler was found (looked for g++, c++ and clang++ on PATH)"
        )
    path = _cached_path(variant, compiler)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_suffix(".lock")):
            if not path.exists():
                logger.warning("compiling the sparse kernels for %s, once (some seconds)", variant)
                compile_variant(variant, compiler, path)
    except OSError as error:
        raise BuildError(f"the cache for compiled kernels can not be written: {error}") from error
    return path


def path_if_built(variant: str) -> Path | None:
    """Where the kernels for one instruction set are; ``None`` if they have to be compiled first."""
    prebuilt = prebuilt_path(variant)
    if prebuilt.exists():
        return prebuilt
    # Only where some compiler has made them, it is worth asking which one there is now.
    compiler = find_compiler() if any(_cache().glob(f"{variant}-{source_hash()}-*.so")) else None
    cached = None if compiler is None else _cached_path(variant, compiler)
    return cached if cached is not None and cached.exists() else None


def _cached_path(variant: str, compiler: str) -> Path:
    return _cache() / f"{variant}-{source_hash()}-{_compiler_hash(compiler)}.so"


def _cache() -> Path:
    """The folder of compiled kernels: SPARSEOPT_CACHE, else the user's cache folder."""
    named = os.environ.get("SPARSEOPT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "sparseopt"


def _compiler_hash(compiler: str) -> str:
    """Ten hexadecimal digits that change with the compiler, its version and the machine."""
    try:
        result = subprocess.run(
            [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"{compiler} could not be started: {error}") from error
    told = (compiler, result.stdout, platform.machine())
    return hashlib.sha256(repr(told).encode()).hexdigest()[:10]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends."""
    import fcntl  # Windows, where nothing is compiled, has no such module

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
