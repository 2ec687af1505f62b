"""Finds and loads the one binary that this process uses, or says why it has none."""

import ctypes
import functools
import logging
import os
import platform
import sys
from pathlib import Path

import torch

from sparseopt.speedup.kernels import build
from sparseopt.speedup.kernels.cpu import supported_variants

__all__ = [
    "available",
    "library",
    "library_if_built",
    "raise_if",
    "threads",
    "variant",
    "why_not",
]

logger = logging.getLogger("sparseopt")

WORK_OF_A_THREAD = 500_000  # multiply-adds: about ten microseconds

_INTERFACE = 4
_OFF = {"0", "off", "false", "no"}

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_float = ctypes.c_float
_LISTS = (_pointer, _long, _pointer)
_MAP = (_int, _long, _int, _int)
# One line for each function of kernels.cpp: the type of its result, then of its arguments.
_SIGNATURES: dict[str, tuple[type | None, ...]] = {
    "sparseopt_build": (_int, _pointer, *_LISTS),
    "sparseopt_gather": (_int, *_LISTS, _pointer, _pointer, _int, _pointer, _int),
    "sparseopt_gather_and_count": (
        _int,
        *_LISTS,
        _pointer,
        _pointer,
        _int,
        _pointer,
        _pointer,
        _int,
    ),
    "sparseopt_scatter": (_int, *_LISTS, _pointer, _pointer, _int, _pointer, _int),
    "sparseopt_output": (_int, *_LISTS, *[_pointer] * 7, _int, _int),
    "sparseopt_input": (_int, *_LISTS, *[_pointer] * 4, _int, _int),
    "sparseopt_values": (_int, *_LISTS, *[_pointer] * 4, _int, _int),
    "sparseopt_change_layout": (_int, _pointer, _pointer, *[_long] * 3, *[_int] * 3),
    "sparseopt_sum_tokens": (_int, _pointer, _long, _long, _pointer, _int, _int),
    "sparseopt_affine": (_int, *[_pointer] * 5, *_MAP),
    "sparseopt_gather_live": (None, _pointer, _long, *[_pointer] * 4, _int, _int),
    "sparseopt_write_live": (None, _pointer, _long, _pointer, _pointer, _int, _int),
    "sparseopt_keep_live": (None, _pointer, _long, _pointer, _int, _int),
    "sparseopt_batch_norm": (_int, *[_pointer] * 3, _float, *[_pointer] * 2, *_MAP),
    "sparseopt_batch_norm_backward": (_int, *[_pointer] * 3, _int, *[_pointer] * 3, *_MAP),
}


class _Loaded:
    """The outcome of looking for a binary: the library and its variant, or a reason.

    Args:
        may_compile: Whether to compile a binary if none is found.
    """

    def __init__(self, *, may_compile: bool) -> None:
        self._may_compile = may_compile
        self.library: ctypes.CDLL | None = None
        self.variant: str | None = None
        self.reason: str | None = None
        setting = os.environ.get("SPARSEOPT_KERNELS", "").strip().lower()
        if setting in _OFF:
            self.reason = f"the environment says SPARSEOPT_KERNELS={setting}"
            return
        variants = supported_variants(build.VARIANTS)
        if not variants:
            self.reason = (
                f"there are no kernels for this machine ({sys.platform}, {platform.machine()}); "
                f"they need Linux and a processor with AVX2 or NEON"
            )
            return
        if setting and setting not in variants:
            self.reason = (
                f"the environment says SPARSEOPT_KERNELS={setting}, but this processor can run "
                f"only {', '.join(variants)}"
            )
            return
        # A compiler that is older than the processor may lack its best instructions.
        for candidate in [setting] if setting else variants:
            library = self._load(candidate)
            if library is not None:
                self.library, self.variant, self.reason = library, candidate, None
                return

    def _load(self, variant: str) -> ctypes.CDLL | None:
        """Return the library of one variant. If it fails, return ``None`` and keep the reason."""
        try:
            path = build.path_if_built(variant)
            if path is None and not self._may_compile:
                return None
            return _open(path or build.compiled(variant))
        except build.BuildError as error:
            reason = f"the kernels could not be compiled: {error}"
        except (OSError, AttributeError) as error:
            reason = f"the compiled kernels could not be loaded: {error}"
        self.reason = self.reason or reason
        return None


def _open(path: Path) -> ctypes.CDLL:
    # torch is imported above: its OpenMP runtime is loaded, and the library finds it by name.
    library = ctypes.CDLL(str(path))
    if library.sparseopt_version() != _INTERFACE:
        raise OSError(f"{path} was built for another version of this package")
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@functools.cache
def _state() -> _Loaded:
    loaded = _Loaded(may_compile=True)
    if loaded.reason is not None:
        logger.info("no sparse kernels: %s", loaded.reason)
    return loaded


@functools.cache
def _state_if_built() -> _Loaded:
    return _Loaded(may_compile=False)


def library_if_built() -> ctypes.CDLL | None:
    """Return the library if it is loaded, or if it can be loaded without compiling."""
    state = _state() if _state.cache_info().currsize else _state_if_built()
    return state.library


def available() -> bool:
    """Whether this process has kernels. The first call may compile them, which takes seconds.

    Example:
        >>> from sparseopt.speedup import kernels
        >>> kernels.available() == (kernels.why_not() is None)
        True
    """
    return _state().library is not None


def why_not() -> str | None:
    """Return the reason why there are no kernels, in one sentence; ``None`` if there are."""
    return _state().reason


def variant() -> str | None:
    """Return the instruction set of the kernels in use: ``"avx512_bf16"``, for example."""
    return _state().variant


def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        RuntimeError: If there is no library; the message says why.
    """
    state = _state()
    if state.library is None:
        raise RuntimeError(f"there are no sparse kernels on this machine: {state.reason}")
    return state.library


_IMPORTED_BY = os.getpid()


def threads(work: int) -> int:
    """Return how many threads a call may use: at most torch's number, and one after a fork.

    A forked child has the parent's OpenMP state but none of its threads, so several would hang.

    Args:
        work: Multiply-adds of the call. A small call is not worth the waking of many threads.
    """
    if os.getpid() != _IMPORTED_BY:
        return 1
    return max(1, min(torch.get_num_threads(), work // WORK_OF_A_THREAD))


def raise_if(failed: int) -> None:
    """Raise the error that a function of the library reports.

    Raises:
        MemoryError: If there is not enough memory for its scratch space.
    """
    if failed:
        raise MemoryError("there is not enough memory for the scratch space of the sparse kernels")
