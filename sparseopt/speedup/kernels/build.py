"""Compiles the C++ of the kernels: at first use into a cache, or while a wheel is built.

This module imports only the standard library, so that a build hook can load it by its path, without
torch.
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
    "x86_64": ("avx512_bf16", "avx512_bf16_dots", "avx512", "avx2"),
    "aarch64": ("neon",),
}
"""The instruction sets for which a binary can be made, by machine.

``avx512_bf16_dots`` uses the instructions of ``avx512_bf16``, but multiplies a line by one weight
with float multiply-adds.
"""

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_AVX512_BF16 = (*_AVX512, "-mavx512bf16")
_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512_BF16,
    "avx512_bf16_dots": (*_AVX512_BF16, "-DFLOAT_MULTIPLY_ADDS"),
    "neon": (),
}
# Contraction turns a product and a sum into a multiply-add; all else is IEEE arithmetic.
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
    """There is no compiler, or it failed; the message is one line."""


def find_compiler() -> str | None:
    """Return the C++ compiler: the environment's ``CXX``, else the first of g++, c++, clang++.

    Raises:
        BuildError: If ``CXX`` is not a command.
    """
    named = _named_compiler()
    candidates = [named] if named else ["g++", "c++", "clang++"]
    for candidate in candidates:
        if shutil.which(_words(candidate)[0]) is not None:
            return candidate
    return None


def _named_compiler() -> str | None:
    return os.environ.get("CXX", "").strip() or None


def _words(compiler: str) -> list[str]:
    """Split a command such as ``ccache g++`` into its words."""
    try:
        return shlex.split(compiler)
    except ValueError as error:
        raise BuildError(
            f"the compiler named by CXX ({compiler}) is not a command: {error}"
        ) from error


def source_hash() -> str:
    """Return ten hexadecimal digits that change with the source and with the flags."""
    digest = hashlib.sha256(repr((_FLAGS, _INSTRUCTIONS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def prebuilt_path(variant: str) -> Path:
    """Return the path of a binary that came with the package; its name has the source's hash."""
    return PREBUILT / f"{variant}-{source_hash()}.so"


def compile_variant(variant: str, compiler: str, destination: Path) -> None:
    """Compile the kernels for one instruction set.

    The file is renamed into place when it is complete, so that no process reads a part of it.

    Args:
        variant: An instruction set of :data:`VARIANTS`.
        compiler: A command, as :func:`find_compiler` gives it.
        destination: The shared library to write.

    Raises:
        BuildError: If the compiler could not be started, or if it failed.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".build-") as folder:
        scratch = Path(folder) / destination.name
        command = [
            *_words(compiler),
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
    """Return the line of the compiler's output that describes the error."""
    lines = result.stderr.splitlines() or [f"exit status {result.returncode}"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


def compiled(variant: str) -> Path:
    """Return the kernels for one instruction set, compiled now unless an earlier process did so.

    Many processes may call this at the same time: one compiles, and the others wait for it.

    Raises:
        BuildError: If there is no compiler, if it failed, or if the cache cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        named = _named_compiler()
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
        raise BuildError(f"the cache for compiled kernels cannot be written: {error}") from error
    return path


def path_if_built(variant: str) -> Path | None:
    """Return the path of kernels for one instruction set; ``None`` if they must be compiled."""
    prebuilt = prebuilt_path(variant)
    if prebuilt.exists():
        return prebuilt
    # find_compiler() takes time, and is called only if some compiler has made such kernels.
    compiler = find_compiler() if any(_cache().glob(f"{variant}-{source_hash()}-*.so")) else None
    cached = None if compiler is None else _cached_path(variant, compiler)
    return cached if cached is not None and cached.exists() else None


def _cached_path(variant: str, compiler: str) -> Path:
    return _cache() / f"{variant}-{source_hash()}-{_compiler_hash(compiler)}.so"


def _cache() -> Path:
    """Return the folder of compiled kernels: SPARSEOPT_CACHE, else the user's cache folder.

    Raises:
        BuildError: If the user has no home folder.
    """
    named = os.environ.get("SPARSEOPT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(named) if named else Path(base) / "sparseopt"
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise BuildError(
            f"there is no home folder for the cache {path}; name a folder by SPARSEOPT_CACHE"
        ) from error


def _compiler_hash(compiler: str) -> str:
    """Return ten hexadecimal digits that change with the compiler, its version and the machine."""
    try:
        result = subprocess.run(
            [*_words(compiler), "--version"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"{compiler} could not be started: {error}") from error
    told = (compiler, result.stdout, platform.machine())
    return hashlib.sha256(repr(told).encode()).hexdigest()[:10]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process ends."""
    import fcntl  # not on Windows, where nothing is compiled

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
