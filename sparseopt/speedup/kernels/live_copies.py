"""Copies between a tensor and its live entries by the kernels, if there is a binary.

Every ordinary step of sparse training makes such copies. So nothing is compiled for them: they use
a binary that came with the package, or one that was compiled for another purpose.
"""

import ctypes

import torch
from torch import Tensor

from sparseopt.speedup.kernels.library import library_if_built, threads
from sparseopt.speedup.kernels.ops import plain_call

__all__ = ["KernelCopies", "find_live_copies"]

_ACCESS = 4  # multiply-adds in the time of one entry


class KernelCopies:
    """The implementation of :class:`sparseopt.masks.live_copies.LiveCopies` by the kernels."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def gather(
        self,
        bits: Tensor,
        dense: Tensor,
        live: Tensor,
        other: Tensor | None = None,
        other_live: Tensor | None = None,
    ) -> None:
        """Read one tensor, or two in one pass over memory."""
        self._library.sparseopt_gather_live(
            bits.data_ptr(),
            bits.numel() // 8,
            dense.data_ptr(),
            live.data_ptr(),
            None if other is None else other.data_ptr(),
            None if other_live is None else other_live.data_ptr(),
            dense.element_size(),
            threads(_ACCESS * dense.numel()),
        )

    def write(self, bits: Tensor, live: Tensor, dense: Tensor) -> None:
        """Write every entry once."""
        self._library.sparseopt_write_live(
            bits.data_ptr(),
            dense.numel(),
            live.data_ptr(),
            dense.data_ptr(),
            dense.element_size(),
            threads(_ACCESS * dense.numel()),
        )
        _note_write(dense)

    def keep(self, bits: Tensor, dense: Tensor) -> None:
        """Write zero to every entry that is not live, and the old value to live entries."""
        self._library.sparseopt_keep_live(
            bits.data_ptr(),
            dense.numel(),
            dense.data_ptr(),
            dense.element_size(),
            threads(_ACCESS * dense.numel()),
        )
        _note_write(dense)


def find_live_copies() -> KernelCopies | None:
    """Return the copies if there is a binary and the call is plain; see :func:`plain_call`."""
    library = library_if_built()
    return KernelCopies(library) if library is not None and plain_call(()) else None


def _note_write(tensor: Tensor) -> None:
    # By the version, autograd notices that a tensor that it saved was overwritten.
    torch.autograd.graph.increment_version(tensor)
