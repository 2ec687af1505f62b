"""Copies between a tensor and its live entries by the kernels, once there is a binary.

An ordinary step makes them, of everybody who trains sparse. So nothing is ever compiled for them:
they are there where the binary came with the package, or where it was compiled for something else.
"""

import ctypes

import torch
from torch import Tensor

from sparseopt.speedup.kernels.library import library_if_built, threads
from sparseopt.speedup.kernels.ops import plain_call

__all__ = ["KernelCopies", "find_live_copies"]

_ACCESS = 4  # multiply-adds in the time of one entry


class KernelCopies:
    """What :class:`sparseopt.masks.live_copies.LiveCopies` asks for."""

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
        """Read one tensor, or two on one way through memory."""
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
        """Write every entry that is not live, and live ones as they were."""
        self._library.sparseopt_keep_live(
            bits.data_ptr(),
            dense.numel(),
            dense.data_ptr(),
            dense.element_size(),
            threads(_ACCESS * dense.numel()),
        )
        _note_write(dense)


def find_live_copies() -> KernelCopies | None:
    """Return the copies if there is a binary, and nobody looks into what torch is called for."""
    library = library_if_built()
    return KernelCopies(library) if library is not None and plain_call(()) else None


def _note_write(tensor: Tensor) -> None:
    # Autograd refuses to compute with a tensor that was written to since it was saved.
    torch.autograd.graph.increment_version(tensor)
