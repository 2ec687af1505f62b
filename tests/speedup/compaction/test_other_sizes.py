"""A compacted model computes the same as the full model at other sizes of the input."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import compact


class Tokens(nn.Module):
    """Reduces the tokens of a set, or sums them in another way."""

    def __init__(self, reduce):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.last = nn.Linear(8, 3)
        self.reduce = reduce
        nn.init.constant_(self.first.bias, 0.5)

    def forward(self, x):
        return self.last(self.reduce(self.first(x).relu()))


def after_removal(model, dropped, x):
    """Return what compact() makes of a model whose first layer lost the filters ``dropped``."""
    mask = torch.ones_like(model.first.weight, dtype=torch.bool)
    mask[dropped] = False
    return compacted(model, {"first": mask}, x)


def compacted(model, masks, x):
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight[~mask] = 0
    return compact(model, masks, example_inputs=x).model


def by_ones(x):
    return (torch.ones(1, x.shape[1]) @ x)[:, 0]


def by_ones_on_the_right(x):
    return (x.transpose(1, 2) @ torch.ones(x.shape[1], 1))[..., 0]


def by_linear(x):
    return F.linear(x.transpose(1, 2), torch.ones(1, x.shape[1]))[..., 0]


REDUCTIONS = {
    "sum": lambda x: x.sum(1),
    "by_ones": by_ones,
    "by_ones_on_the_right": by_ones_on_the_right,
    "by_linear": by_linear,
    "einsum": lambda x: torch.einsum("btc->bc", x),
    "prod": lambda x: x.prod(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "norm": lambda x: x.norm(dim=1),
    "last of cumsum": lambda x: x.cumsum(1)[:, -1],
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dropped", [[1, 4], [*range(8)]])
def test_constants_that_are_summed_over_tokens_are_no_constants(name, dropped):
    torch.manual_seed(0)
    model = Tokens(REDUCTIONS[name])
    smaller = after_removal(model, dropped, torch.randn(4, 6, 5))
    for tokens in (1, 6, 12):
        x = torch.randn(4, tokens, 5)
        torch.testing.assert_close(smaller(x), model(x), msg=f"{tokens} tokens")


@pytest.mark.parametrize("reduce", [torch.mean, torch.amax])
def test_constants_are_removed_where_the_number_of_tokens_does_not_matter(reduce):
    torch.manual_seed(0)
    model = Tokens(lambda x: reduce(x, dim=1))
    smaller = after_removal(model, [1, 4], torch.randn(4, 6, 5))
    assert smaller.first.weight.shape == (6, 5)
    x = torch.randn(4, 12, 5)
    torch.testing.assert_close(smaller(x), model(x))


def test_zeros_are_removed_from_a_sum():
    model = Tokens(lambda x: x.sum(1))
    model.first.bias.data[[1, 4]] = -0.5
    smaller = after_removal(model, [1, 4], torch.randn(4, 6, 5))
    assert smaller.first.weight.shape == (6, 5)
    x = torch.randn(4, 12, 5)
    torch.testing.assert_close(smaller(x), model(x))


class Image(nn.Module):
    """Sums or pools a map, after a convolution that sees each pixel for itself."""

    def __init__(self, pool):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.pool = pool
        self.last = nn.Linear(8, 3)
        nn.init.constant_(self.first.bias, 0.5)

    def forward(self, x):
        return self.last(self.pool(self.first(x).relu()).amax((2, 3)))


POOLS = {
    "sum": lambda x: x.sum((2, 3), keepdim=True),
    "padded average pool": lambda x: F.avg_pool2d(x, 3, padding=1),
    "convolution with ones": lambda x: F.conv2d(x, torch.ones(8, 1, *x.shape[2:]), groups=8),
    "sum pool": lambda x: F.avg_pool2d(x, x.shape[2:], divisor_override=1),
}


@pytest.mark.parametrize("name", POOLS)
def test_constants_that_are_summed_over_pixels_are_no_constants(name):
    torch.manual_seed(0)
    model = Image(POOLS[name])
    # Every window of the padded pool covers the full map.
    smaller = after_removal(model, [1, 4], torch.randn(4, 3, 2, 2))
    for size in (1, 2, 6):
        x = torch.randn(4, 3, size, size)
        torch.testing.assert_close(smaller(x), model(x), msg=f"{size} x {size} pixels")


class Padded(nn.Module):
    """A padded convolution between two convolutions that see each pixel for itself."""

    def __init__(self, kind, groups):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.padded = kind(8, 8, 3, padding=1, groups=groups)
        self.last = nn.Conv2d(8, 3, 1)
        nn.init.constant_(self.first.bias, 0.5)

    def forward(self, x):
        return self.last(self.padded(self.first(x).relu()))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 8])
def test_padded_convolution_of_constants_on_a_map_of_one_pixel_makes_no_constants(kind, groups):
    torch.manual_seed(0)
    model = Padded(kind, groups)
    masks = {
        name: torch.ones_like(model.get_submodule(name).weight, dtype=torch.bool)
        for name in ("first", "padded")
    }
    masks["first"][1] = False
    if groups == 1:
        # One filter reads only the constant.
        by_filter = masks["padded"] if kind is nn.Conv2d else masks["padded"].transpose(0, 1)
        by_filter[2] = False
        by_filter[2, 1] = True
    smaller = compacted(model, masks, torch.randn(4, 3, 1, 1))
    for size in (1, 5):
        x = torch.randn(4, 3, size, size)
        torch.testing.assert_close(smaller(x), model(x), msg=f"{size} x {size} pixels")
