"""Maps change between channels-last format and the kernels' layout, bit by bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseopt.speedup.kernels import calls
from tests.speedup.kernels.dense import needs_kernels

pytestmark = needs_kernels

DTYPES = [torch.float32, torch.bfloat16]


def check_both_ways(shape, dtype):
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    # All bits are drawn, so that there are numbers of every kind.
    x = torch.randint(-(2**31), 2**31, shape).to(bits).view(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    inside = calls.kernel_layout_of_channels_last(x)
    assert inside.permute(1, 2, 3, 0).is_contiguous()
    assert torch.equal(inside.view(bits), x.view(bits))
    outside = calls.channels_last_layout(inside)
    assert outside.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(outside.view(bits), x.view(bits))


@settings(max_examples=80)
@given(
    batch=st.integers(0, 140),
    channels=st.integers(1, 80),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
)
def test_maps_of_all_sizes(batch, channels, size, dtype):
    check_both_ways((batch, channels, *size), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "shape", [(128, 64, 16, 17), (96, 70, 28, 28), (50, 64, 28, 28), (64, 3, 80, 80)], ids=str
)
def test_maps_that_are_written_past_the_caches(shape, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_both_ways(shape, dtype)
    finally:
        torch.set_num_threads(before)
