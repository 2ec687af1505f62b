"""Dtypes, memory formats and strides of weights and gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support import wrapping
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import make

wrap = partial(wrapping.wrap, name="AdamW", density=0.25, delta_t=3, init="er")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_memory_format_stay_what_they_were(dtype, channels_last, state, device):
    if device == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    model = make(dtype=dtype, channels_last=channels_last, device=device)
    strides = {name: p.stride() for name, p in model.named_parameters()}
    optimizer = wrap(model, state=state)
    for _ in range(7):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    for name, p in model.named_parameters():
        assert (p.dtype, p.stride()) == (dtype, strides[name]), name
        assert p.is_leaf
        assert p.requires_grad
    for key, value in optimizer.state[model.conv2.weight].items():
        if torch.is_tensor(value) and value.numel() > 1 and value.dtype != torch.bool:
            assert value.dtype == dtype, key


@pytest.mark.parametrize("gradient_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_weight_and_gradient_may_be_of_different_memory_formats(
    method, weight_last, gradient_last, state
):
    """Equal, bit for bit, to the run with contiguous tensors."""
    results = []
    for weights, gradients in ((False, False), (weight_last, gradient_last)):
        model = make(channels_last=weights)
        optimizer = wrap(model, state=state, method=method)
        layout = torch.channels_last if gradients else torch.contiguous_format
        for t in range(10):
            generator = torch.Generator().manual_seed(t)
            for p in model.parameters():
                gradient = torch.randn(p.shape, generator=generator)
                if p.ndim == 4:
                    gradient = gradient.contiguous(memory_format=layout)
                p.grad = gradient
            optimizer.step()
            assert_dropped_are_fresh(optimizer)
        results.append((model, optimizer))
    (reference, first), (model, second) = results
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for name, mask in first.masks.items():
        assert torch.equal(mask, second.masks[name])


ARRANGED = {
    "transposed": lambda values: values.t().contiguous().t(),
    "a slice of something wider": lambda values: torch.cat([values, values], dim=1)[:, :20],
}


@pytest.mark.parametrize("arranged", ARRANGED)
def test_weight_in_unusual_memory_is_handled_in_logical_order(arranged, state):
    """A weight in column-major order, as in some checkpoints, or with gaps between its rows."""
    results = []
    for arrange in (torch.Tensor.contiguous, ARRANGED[arranged]):
        model = nn.Sequential(nn.Linear(20, 30))
        values = arrange(torch.arange(600.0).reshape(30, 20).sub(300).div(100))
        model[0].weight = nn.Parameter(values)
        optimizer = wrap(model, state=state)
        for t in range(10):
            generator = torch.Generator().manual_seed(t)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            assert_dropped_are_fresh(optimizer)
        assert model[0].weight.stride() == values.stride()
        results.append((model[0].weight.detach(), optimizer.masks["0.weight"]))
    assert values.stride() != results[0][0].stride()
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_tiny_layers_of_one_weight(state):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = wrap(model, state=state)
    for _ in range(7):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert [layer.live for layer in optimizer.layers] == [1, 1]


def test_functional_use_of_a_weight_is_masked_too():
    """The weight counts, not the way in which it is used."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    optimizer = wrap(model)
    F.linear(torch.randn(4, 8), model[0].weight).square().sum().backward()
    mask = optimizer.masks["0.weight"]
    assert not model[0].weight.grad[~mask].any()
    assert model[0].weight.grad[mask].all()


def test_memory_format_may_change_after_wrapping(state):
    """Equal, bit for bit, to the run that stays contiguous."""
    results = []
    for changes in (False, True):
        model = make()
        optimizer = wrap(model, state=state)
        for t in range(12):
            if changes and t == 5:
                model.to(memory_format=torch.channels_last)
            generator = torch.Generator().manual_seed(t)
            for p in model.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            optimizer.step()
            assert_dropped_are_fresh(optimizer)
        assert model.conv2.weight.is_contiguous() != changes
        results.append((model, optimizer))
    (reference, first), (model, second) = results
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for name, mask in first.masks.items():
        assert torch.equal(mask, second.masks[name])
    assert len(first.history) >= 3
