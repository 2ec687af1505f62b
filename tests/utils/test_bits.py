"""Masks packed into bits, by the code that only accelerators take, against NumPy."""

import numpy as np
import pytest
import torch

from sparseopt.utils import bits


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_bits_are_packed_as_numpy_packs_them(count: int):
    mask = torch.rand(count) < 0.5

    packed = bits._pack_on_device(mask)

    assert packed.tolist() == np.packbits(mask.numpy()).tolist()
    assert torch.equal(bits.unpack(packed, count), mask)
    assert bits.popcounts([packed]) == [int(mask.sum())]
