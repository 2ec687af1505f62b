"""Code that only accelerators take, run on CPU tensors, against NumPy.

Whether it is right doesn't depend on the device; that it is fast there can't be tested here.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt import bits, indices, selection


@given(
    values=st.lists(st.integers(-3, 3), min_size=2, max_size=40),
    share=st.floats(0.01, 0.99),
)
def test_selection_without_waiting_for_the_device(values: list[int], share: float):
    k = min(max(1, int(share * len(values))), len(values) - 1)
    scores = torch.tensor(values, dtype=torch.float32)
    order = np.argsort(-scores.numpy(), kind="stable")[:k]

    chosen = selection._largest_on_device(scores, k, None)

    assert chosen.nonzero().view(-1).tolist() == sorted(order.tolist())


@given(mask=st.lists(st.booleans(), min_size=1, max_size=40))
def test_positions_without_waiting_for_the_device(mask: list[bool]):
    expected = np.flatnonzero(mask)

    found = indices._indices_on_device(torch.tensor(mask), int(sum(mask)))

    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_bits_are_packed_as_numpy_packs_them(count: int):
    mask = torch.rand(count) < 0.5

    packed = bits._pack_on_device(mask)

    assert packed.tolist() == np.packbits(mask.numpy()).tolist()
    assert torch.equal(bits.unpack(packed, count), mask)
    assert bits.popcounts([packed]) == [int(mask.sum())]


@given(
    masks=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    back=st.booleans(),
)
def test_positions_that_stay_and_grow_together(masks: list[tuple[bool, bool]], back: bool):
    """For each position that is live afterwards, its place among those live before, from 1."""
    before = np.array([live for live, _ in masks])
    drawn = np.array([marked for _, marked in masks])
    survivors = before & drawn
    # Those dropped just now may come straight back.
    grown = ~survivors & drawn if not back else ~survivors & (drawn | before)
    after = survivors | grown
    place = np.where(before, np.cumsum(before), 0)
    where, stay, new = (
        torch.from_numpy(array).int()
        for array in (np.flatnonzero(before), np.flatnonzero(drawn[before]), np.flatnonzero(grown))
    )

    for merge in (indices._merged_on_device, _merged_on_cpu):
        positions, places = merge(where, stay, new, before.size)
        assert positions.tolist() == np.flatnonzero(after).tolist()
        assert places.tolist() == place[after].tolist()


def _merged_on_cpu(*tensors_and_count):
    *tensors, count = tensors_and_count
    return indices._merged_on_cpu(*(tensor.numpy() for tensor in tensors), count)
