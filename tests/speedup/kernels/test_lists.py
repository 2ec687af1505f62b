"""Lists of live weights: their content, when they are outdated, and their errors."""

import copy
import pickle

import pytest
import torch

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls
from tests.speedup.kernels.dense import lists_of, needs_kernels


@needs_kernels
def test_values_are_the_live_weights_in_order():
    mask = torch.rand(6, 5, 3, 2) < 0.4
    lists, weight = lists_of(mask, stride=2, dilation=3), torch.randn(mask.shape)
    assert lists.live == mask.sum()
    assert torch.equal(calls.live_values(weight, lists.tensor, lists.layout), weight[mask])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_values_go_back_to_their_places(dtype, channels_last):
    mask = torch.rand(6, 5, 3, 2) < 0.4
    lists, weight = lists_of(mask), torch.randn(mask.shape).to(dtype)
    dense = calls.scatter_values(
        weight[mask], lists.tensor, lists.layout, mask.shape, dtype, channels_last
    )
    assert torch.equal(dense, weight * mask)
    assert dense.is_contiguous(memory_format=torch.channels_last) == channels_last


@needs_kernels
def test_version_alone_says_whether_lists_are_stale():
    lists = kernels.LiveLists((2, 4))
    lists.update(torch.tensor([0, 3]), version=7)
    first = lists.tensor
    lists.update(torch.tensor([1]), version=7)
    assert lists.tensor is first
    lists.update(torch.tensor([1]), version=8)
    assert (lists.live, lists.version) == (1, 8)


@needs_kernels
def test_graph_keeps_the_lists_of_its_forward_pass():
    old, new = torch.eye(4) > 0, torch.eye(4).flip(0) > 0
    lists, weight = lists_of(old), torch.randn(4, 4, requires_grad=True)
    y = kernels.linear(torch.ones(1, 4), weight, None, lists)
    lists.update(new.flatten().nonzero()[:, 0], version=2)
    y.sum().backward()
    assert torch.equal(weight.grad != 0, old)


@needs_kernels
def test_inference_remembers_values_until_weight_or_mask_change():
    lists, weight = lists_of(torch.ones(1, 2) > 0), torch.ones(1, 2)
    x = torch.ones(1, 2)
    assert kernels.linear(x, weight, None, lists) == 2
    weight += 1
    assert kernels.linear(x, weight, None, lists) == 4
    weight.data.fill_(5)  # unseen: writes through .data do not count
    lists.forget_values()
    assert kernels.linear(x, weight, None, lists) == 10
    lists.update(torch.tensor([1]), version=2)
    assert kernels.linear(x, weight, None, lists) == 5


@needs_kernels
def test_inference_mode_follows_writes_that_have_no_version():
    with torch.inference_mode():
        lists, weight = lists_of(torch.ones(1, 2) > 0), torch.ones(1, 2)
        assert kernels.linear(torch.ones(1, 2), weight, None, lists) == 2
        weight += 1
        assert kernels.linear(torch.ones(1, 2), weight, None, lists) == 4


@needs_kernels
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_lists_can_be_copied_and_saved(again):
    mask = torch.rand(4, 3, 3, 3) < 0.5
    lists, x, weight = lists_of(mask, padding=1), torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3)
    expected = kernels.conv2d(x, weight, None, lists)
    assert torch.equal(kernels.conv2d(x, weight, None, again(lists)), expected)


@needs_kernels
@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [0, 8], [-1, 2]])
def test_positions_that_are_no_places_are_refused(positions):
    lists = kernels.LiveLists((2, 4))
    with pytest.raises(ValueError, match=r"ascending and below 8, the number of weights"):
        lists.update(torch.tensor(positions), version=1)
    assert lists.version is None


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        (torch.tensor([0.0]), TypeError, "float32"),
        (torch.tensor([[0]]), ValueError, "one dimension"),
    ],
)
def test_positions_of_another_kind_are_refused(positions, error, words):
    with pytest.raises(error, match=words):
        kernels.LiveLists((2, 4)).update(positions, version=1)


@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        ((2,), {}, "shape must"),
        ((2, 3, 4), {}, "shape must"),
        ((2, 0), {}, "shape must"),
        ((2, 3, 65, 65), {}, "taps"),
        ((2, 3, 1, 1), {"stride": 0}, "stride must"),
        ((2, 3, 1, 1), {"padding": -1}, "padding must"),
        ((2, 3, 1, 1), {"dilation": (1, 2, 3)}, "dilation must"),
    ],
)
def test_settings_that_the_kernels_do_not_know_are_refused(shape, settings, words):
    with pytest.raises(ValueError, match=words):
        kernels.LiveLists(shape, **settings)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["contiguous", "channels-last", "strided"])
def test_weights_outside_the_mask_are_seen_while_live_ones_are_gathered(place, dtype):
    mask = torch.rand(5, 7, 3, 2) < 0.3
    lists = lists_of(mask)
    weight = torch.where(mask, torch.randn(mask.shape), 0.0).to(dtype)
    expected = weight[mask].float()
    if place == "channels-last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    elif place == "strided":
        weight = weight.repeat(1, 1, 1, 2)[..., :2]
    values, is_masked = calls.live_values_if_masked(weight, lists.tensor, lists.layout)
    assert is_masked
    assert torch.equal(values, expected)
    outside = (~mask).nonzero()[11]
    weight[tuple(outside)] = -1e-30
    values, is_masked = calls.live_values_if_masked(weight, lists.tensor, lists.layout)
    assert not is_masked
    assert torch.equal(values, expected)
    weight[tuple(outside)] = 0
    live = mask.nonzero()[3]
    weight[tuple(live)] = 0
    assert calls.live_values_if_masked(weight, lists.tensor, lists.layout)[1]
