"""Kernels for CPUs that do only the live work: convolutions and linear layers, all three products.

They are C++, compiled at first use (or with the wheel) and called through ctypes. Where they can
not be had, :func:`available` is false and :func:`why_not` says why.
"""

from sparseopt.masks.live_copies import provide_live_copies
from sparseopt.speedup.kernels.formats import LiveLists
from sparseopt.speedup.kernels.library import available, variant, why_not
from sparseopt.speedup.kernels.live_copies import find_live_copies
from sparseopt.speedup.kernels.products import conv2d, linear

__all__ = ["LiveLists", "available", "conv2d", "linear", "variant", "why_not"]

provide_live_copies(find_live_copies)
