"""Writing a tensor in blocks."""

import pytest
import torch

from sparseopt.masks import memory_layout


@pytest.mark.parametrize("block", [1, 7, 16, 100])
@pytest.mark.parametrize("live", [0, 1, 30, 99])
@pytest.mark.parametrize("ascending", [True, False])
def test_whatever_the_block_what_is_written_is_the_same(block, live, ascending, monkeypatch):
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
