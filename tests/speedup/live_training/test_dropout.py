"""Dropout in the kernels' layout: other draws, the same distribution."""

import pytest
import torch
from torch import nn

from sparseopt.speedup.kernels.calls import kernel_layout
from sparseopt.speedup.live_training.dropout import drop_entries
from sparseopt.speedup.live_training.modules import FastDropout, exchange, put_back


def maps(*shape, dtype=torch.float32):
    return kernel_layout(torch.ones(shape, dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale_are_those_of_torch(p, dtype):
    x = maps(64, 16, 16, 16, dtype=dtype)
    y = drop_entries(x, p).detach()
    dropped = float((y == 0).double().mean())
    # Five standard deviations.
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.testing.assert_close(
        y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-4, atol=0
    )
    spread = 5 * (p / (1 - p) / x.numel()) ** 0.5
    assert float(y.double().mean()) == pytest.approx(1, abs=spread + torch.finfo(dtype).eps / 2)


def test_entries_are_dropped_independently():
    """Draws are independent, also if they share a random number, and of earlier calls."""
    x = maps(64, 16, 16, 16)
    dropped = [(drop_entries(x, 0.3) == 0).permute(1, 2, 3, 0).reshape(-1) for _ in range(2)]
    first, second = (one.double() - one.double().mean() for one in dropped)
    pairs = [(first[:-lag], first[lag:]) for lag in (1, 2, 3, 4, 64)] + [(first, second)]
    for left, right in pairs:
        correlation = float((left * right).mean() / (first.std() * second.std()))
        assert abs(correlation) < 5 / len(left) ** 0.5


def test_all_entries_are_drawn_whatever_their_number():
    for size in range(1, 10):
        torch.manual_seed(0)
        kept = sum(drop_entries(maps(size, 1, 1, 1), 0.5).detach() != 0 for _ in range(60))
        assert (kept > 0).all()
        assert (kept < 60).all()


def test_gradient_passes_where_entries_were_kept():
    x = maps(5, 3, 4, 4)
    y = drop_entries(x, 0.4)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_layout_and_dtype_stay():
    y = drop_entries(maps(5, 3, 4, 4, dtype=torch.bfloat16), 0.4)
    assert y.dtype == torch.bfloat16
    assert y.permute(1, 2, 3, 0).is_contiguous()


def test_same_seed_gives_the_same_draws():
    x = maps(5, 3, 4, 4)
    torch.manual_seed(3)
    first = drop_entries(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drop_entries(x, 0.5))


@pytest.mark.parametrize("inplace", [False, True])
def test_module_drops_in_training_only(inplace):
    module = nn.Dropout(0.5, inplace=inplace)
    exchange(module, None)
    assert type(module) is FastDropout
    x = maps(8, 4, 4, 4).detach()
    y = module(x.clone(memory_format=torch.preserve_format))
    assert 0 < int((y == 0).sum()) < y.numel()
    assert torch.equal(module.eval()(x), x)
    put_back(module)
    assert type(module) is nn.Dropout


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_module_keeps_or_drops_all_as_torch_does(p):
    module = nn.Dropout(p)
    exchange(module, None)
    assert torch.equal(module(maps(8, 4, 4, 4)), torch.full((8, 4, 4, 4), 1 - p))


def test_other_layouts_get_the_draws_of_torch():
    module, plain = nn.Dropout(0.5), nn.Dropout(0.5)
    exchange(module, None)
    x = torch.ones(8, 4, 5, 5)
    torch.manual_seed(1)
    expected = plain(x)
    torch.manual_seed(1)
    assert torch.equal(module(x), expected)
