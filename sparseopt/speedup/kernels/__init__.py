"""Kernels for CPUs that compute with live weights only: all products of convolutions and linears.

They are C++, compiled at first use (or with the wheel) and called through ctypes. Where they are
not available, :func:`available` returns false and :func:`why_not` returns the reason.
"""

from sparseopt.masks.live_copies import provide_live_copies
from sparseopt.speedup.kernels.formats import LiveLists
from sparseopt.speedup.kernels.library import available, variant, why_not
from sparseopt.speedup.kernels.live_copies import find_live_copies
from sparseopt.speedup.kernels.products import conv2d, linear

__all__ = ["LiveLists", "available", "conv2d", "linear", "variant", "why_not"]

provide_live_copies(find_live_copies)
