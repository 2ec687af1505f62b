"""Code that only accelerators take, run on CPU tensors, against NumPy.

Whether it is right doesn't depend on the device; that it is fast there can't be tested here.
"""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt.masks import indices, topk


@given(
    values=st.lists(st.integers(-3, 3), min_size=2, max_size=40),
    share=st.floats(0.01, 0.99),
)
def test_selection_without_waiting_for_the_device(values: list[int], share: float):
    k = min(max(1, int(share * len(values))), len(values) - 1)
    scores = torch.tensor(values, dtype=torch.float32)
    order = np.argsort(-scores.numpy(), kind="stable")[:k]

    chosen = topk._largest_on_device(scores, k, None)

    assert chosen.nonzero().view(-1).tolist() == sorted(order.tolist())


@given(
    values=st.lists(st.sampled_from([-np.inf, -1.0, 2.0]), min_size=2, max_size=40), data=st.data()
)
def test_excluded_scores_are_not_chosen_though_others_are_minus_infinity(values, data):
    size = len(values)
    excluded = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    k = data.draw(st.integers(0, int((~excluded).sum())))
    scores = np.array(values, dtype=np.float32)
    free = np.flatnonzero(~excluded)
    order = free[np.argsort(-scores[free], kind="stable")[:k]]
    given_scores, given_excluded = torch.from_numpy(scores), torch.from_numpy(excluded)

    chosen = topk._largest_on_device(given_scores, k, given_excluded)
    in_rows = topk.largest_in_rows(
        given_scores[None], torch.tensor([k]), most=k, excluded=given_excluded[None]
    )

    assert chosen.nonzero().view(-1).tolist() == sorted(order.tolist())
    assert in_rows[0].tolist() == chosen.tolist()


def test_selection_of_no_weights_is_empty():
    chosen = topk._largest_on_device(torch.tensor([2.0, 1.0]), 0, None)

    assert chosen.tolist() == [False, False]


@given(mask=st.lists(st.booleans(), min_size=1, max_size=40))
def test_positions_without_waiting_for_the_device(mask: list[bool]):
    expected = np.flatnonzero(mask)

    found = indices._indices_on_device(torch.tensor(mask), int(sum(mask)))

    assert found.tolist() == expected.tolist()
