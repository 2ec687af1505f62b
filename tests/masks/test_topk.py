"""The k largest scores, ties to the lowest index."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt.masks.topk import largest
from tests import oracle
from tests.support.looking import logical

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def assert_largest(scores, k):
    before = scores.clone()
    mask = largest(scores, k)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert mask.device == scores.device
    assert torch.equal(scores, before), "the scores were changed"
    expected = oracle.largest(logical(scores), k)
    np.testing.assert_array_equal(logical(mask), expected)


def some(numel):
    return sorted({0, 1, 2, numel // 10, numel // 2, numel - 1, numel} & set(range(numel + 1)))


@pytest.mark.parametrize("numel", [1, 2, 7, 100, 4096, 70_001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_scores(dtype, numel, device):
    if device == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    scores = torch.randn(numel).to(dtype).to(device)
    for k in some(numel):
        assert_largest(scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_a_few_values_only(dtype, device):
    if device == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    scores = torch.randint(0, 3, (5000,)).to(dtype).to(device)
    for k in [*some(5000), 1666, 1667, 3333, 3334]:
        assert_largest(scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_are_all_the_same_take_the_first(dtype):
    scores = torch.full((1000,), 0.5, dtype=dtype)
    for k in some(1000):
        mask = largest(scores, k)
        assert mask[:k].all()
        assert not mask[k:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_zeros_of_both_signs(dtype):
    scores = torch.tensor(
        [0.0, -0.0, float("-inf"), float("inf"), 1.0, -0.0, 0.0, float("-inf"), float("inf")],
        dtype=dtype,
    )
    for k in range(len(scores) + 1):
        assert_largest(scores, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_one_ulp_apart(dtype):
    base = torch.ones(1000, dtype=dtype)
    up = torch.nextafter(base, torch.full_like(base, 2))
    scores = torch.where(torch.rand(1000) < 0.5, base, up)
    for k in (1, 300, 500, 700, 999):
        assert_largest(scores, k)


def test_subnormal_scores():
    tiny = torch.finfo(torch.float32).smallest_normal / 64
    scores = torch.randint(-5, 6, (2000,)) * tiny
    for k in (1, 100, 1000, 1999):
        assert_largest(scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_are_not_contiguous(dtype):
    """A strided view and a channels-last tensor read in logical order."""
    strided = torch.randn(4000).to(dtype)[::2]
    assert not strided.is_contiguous()
    for k in some(2000):
        assert_largest(strided, k)
    image = torch.randint(-3, 4, (4, 5, 6, 7)).to(dtype).to(memory_format=torch.channels_last)
    for k in some(840):
        assert_largest(image.reshape(-1), k)


def test_scores_that_belong_to_a_graph():
    scores = torch.randn(100, requires_grad=True) * 2
    np.testing.assert_array_equal(logical(largest(scores, 10)), oracle.largest(logical(scores), 10))


@pytest.mark.parametrize("k", [-1, 11])
def test_count_that_is_negative_or_too_large_is_refused(k):
    with pytest.raises(ValueError, match=str(k)):
        largest(torch.randn(10), k)


@given(
    values=st.lists(
        st.floats(-4, 4, width=16).map(lambda x: x + 0.0) | st.sampled_from([0.0, 1.0, -1.0]),
        min_size=1,
        max_size=60,
    ),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_any_scores_against_pythons_own_sort(values, share, dtype):
    scores = torch.tensor(values, dtype=dtype)
    k = int(share * len(values))
    everything = np.ones(len(values), dtype=bool)
    order = oracle.brute_force_order(everything, logical(scores), smallest_first=False)
    mask = largest(scores, k)
    assert sorted(order[:k]) == mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("where", ["on", "off", "first", "last", "ascending", "descending"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_layers_whose_large_scores_hide_from_a_sample(where, dtype):
    """The result is exact, although the selection first samples the scores."""
    numel, every = 40_000, 67
    position = torch.arange(numel)
    large = {
        "on": position % every == 0,
        "off": position % every == 1,
        "first": position < 500,
        "last": position >= numel - 500,
        "ascending": position >= 0,
        "descending": position >= 0,
    }[where]
    height = {"ascending": position, "descending": numel - position}.get(where, 1 + position % 3)
    scores = torch.where(large, height.double(), -1.0).to(dtype)
    for k in (1, 100, 499, 500, 597, 598, 2000, 9_999, 10_001):
        assert_largest(scores, k)


@pytest.mark.parametrize("numel", [50, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_excluded_scores_are_never_marked(dtype, numel, device):
    if device == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    scores = torch.randint(-2, 3, (numel,)).to(dtype).to(device)
    excluded = torch.rand(numel).to(device) < 0.7
    free = logical(~excluded)
    for k in (0, 1, numel // 10, int(free.sum()) - 1, int(free.sum())):
        order = np.flatnonzero(free)[np.argsort(-logical(scores)[free], kind="stable")[:k]]
        expected = np.zeros(numel, dtype=bool)
        expected[order] = True
        np.testing.assert_array_equal(logical(largest(scores, k, excluded)), expected)
    if device == "cpu":  # elsewhere it would wait for the device
        with pytest.raises(ValueError, match=str(int(free.sum()) + 1)):
            largest(scores, int(free.sum()) + 1, excluded)


@pytest.mark.parametrize("numel", [50, 40_000])
def test_scores_that_are_no_number_come_last(numel):
    scores = torch.randn(numel)
    scores[::2] = float("nan")
    numbers = torch.where(scores.isnan(), -torch.inf, scores)
    for k in (1, numel // 10, numel // 2 - 1, numel // 2):
        np.testing.assert_array_equal(
            logical(largest(scores, k)), oracle.largest(logical(numbers), k)
        )
