"""Maps go into the kernels' layout and back, and their gradients the other way."""

import pytest
import torch

from sparseopt.speedup.live_training.layout import (
    by_channel,
    from_channels,
    in_kernel_layout,
    to_channels_last,
    to_kernel_layout,
)

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_values_stay_and_gradients_come_back_as_torch_likes_them(batch, memory_format):
    x = torch.randn(batch, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    y = to_kernel_layout(x)
    assert torch.equal(x, y)
    assert in_kernel_layout(y)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach())
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 70, 3, 5), (16, 64, 9, 9), (130, 5, 2, 3)], ids=str)
def test_maps_of_all_sizes_come_into_the_layout_and_out_again(shape, dtype):
    x = torch.randn(shape).to(dtype)
    inside = to_kernel_layout(x.contiguous(memory_format=torch.channels_last))
    assert in_kernel_layout(inside)
    assert torch.equal(inside, x)
    outside = to_channels_last(inside)
    assert outside.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(outside, x)


@pytest.mark.parametrize("batch", [2, 40])
def test_gradients_of_dense_convolutions_come_back_in_the_kernels_layout(batch):
    x = to_kernel_layout(torch.randn(batch, 3, 4, 5)).detach().requires_grad_()
    y = to_channels_last(x)
    assert torch.equal(x, y)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach())
    assert in_kernel_layout(gradient)


def test_map_of_channels_can_be_changed_in_place():
    """torch forbids this for a view that a custom autograd function returned."""
    x = to_kernel_layout(torch.randn(4, 3, 2, 2)).detach().requires_grad_()
    y = from_channels(by_channel(x) * 1, (4, 3, 2, 2))
    assert torch.equal(x, y)
    y.relu_()
    y.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize("move", [to_kernel_layout, to_channels_last])
def test_moves_have_derivatives_of_second_order(move):
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: move(x).pow(3), (x,))


def test_view_by_channel_shares_the_memory():
    x = to_kernel_layout(torch.randn(4, 3, 2, 5))
    view = by_channel(x)
    assert view.shape == (1, 3, 10, 4)
    assert view.is_contiguous()
    assert view.data_ptr() == x.data_ptr()


def test_other_tensors_are_not_in_the_layout():
    assert not in_kernel_layout(torch.ones(4, 3, 2, 2))
    assert not in_kernel_layout(torch.ones(4, 3, 2, 2).contiguous(memory_format=FORMATS[1]))
    assert not in_kernel_layout(torch.ones(4, 3))
