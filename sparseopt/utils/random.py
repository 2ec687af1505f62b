"""The random numbers that masks are drawn from, the same on every device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mask_generator", "normal", "uniform"]


def mask_generator(seed: int) -> torch.Generator:
    """Return a CPU generator whose numbers are independent of torch's own numbers for ``seed``.

    The weights of a model are mostly drawn after ``torch.manual_seed(seed)`` with the same seed. A
    mask from the same numbers would keep the largest weights instead of random ones.

    Args:
        seed: any seed that torch takes.

    Example:
        >>> torch.rand(2, generator=mask_generator(0)).equal(
        ...     torch.rand(2, generator=torch.Generator().manual_seed(0)))
        False
    """
    digest = hashlib.sha256(f"sparseopt masks {seed}".encode()).digest()
    # A CPU generator reads only the lowest 32 bits of a seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return numbers from [0, 1), on the CPU and in float32, independent of torch's defaults.

    In bfloat16 many numbers would be equal, and ties go to the lowest positions.
    """
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return numbers of mean 0 and standard deviation 1, on the CPU and in float32."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
