"""Tensors are filled where a mask is false, and copied in blocks, both in place."""

import numpy as np
import pytest
import torch

from sparseopt.masks import memory_layout
from sparseopt.masks.memory_layout import fill_where_false_

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.complex64,
]


@pytest.mark.parametrize("fill", [0.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_live_entries_and_the_mask_do_not_change(dtype, fill):
    """Also for one byte: a mask consists of bytes."""
    values = torch.arange(-20, 20).to(dtype)
    mask = torch.arange(40) % 3 == 0
    expected = np.where(np.arange(40) % 3 == 0, values.to(torch.complex128).numpy(), fill)

    fill_where_false_(values, mask, fill)
    fill_where_false_(values, mask, fill)

    np.testing.assert_array_equal(values.to(torch.complex128).numpy(), expected)
    assert mask.view(torch.uint8).tolist() == [int(i % 3 == 0) for i in range(40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_and_nan_go_as_well(dtype):
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")], dtype=dtype)
    fill_where_false_(values, torch.tensor([True, False, False, False]), 0.0)
    assert values.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("block", [1, 7, 16, 100])
@pytest.mark.parametrize("live", [0, 1, 30, 99])
@pytest.mark.parametrize("ascending", [True, False])
def test_result_does_not_depend_on_the_block_size(block, live, ascending, monkeypatch):
    monkeypatch.setattr(memory_layout, "BLOCK", block)
    offsets = torch.randperm(99)[:live].to(torch.int32)
    if ascending:
        offsets = offsets.sort().values
    values = torch.randn(live)
    flat = torch.full((99,), float("nan"))
    memory_layout.write_only_(flat, offsets, values, ascending=ascending)
    expected = torch.zeros(99)
    expected[offsets.long()] = values
    assert torch.equal(flat, expected)
