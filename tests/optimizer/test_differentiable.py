"""`differentiable=True`: gradients flow through the steps, drops and growth included.

As torch wants it, the weights are no leaves then, and their gradients are put there by hand.
"""

import re

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build, takes, torch_optimizers

DIFFERENTIABLE = [name for name in torch_optimizers() if takes(name, "differentiable")]
#: Their learning rate may be a tensor that wants a gradient.
LEARNABLE_RATE = [name for name in ("SGD", "Adam", "AdamW") if name in DIFFERENTIABLE]
SETTINGS = {"method": "rigl", "init": {"0.0": 0.3}, "delta_t": 2, "total_steps": 100, "seed": 1}


def meta_parameters():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator, dtype=torch.double, requires_grad=True)
    bias = torch.randn(6, generator=generator, dtype=torch.double, requires_grad=True)
    rate = torch.tensor(0.05, dtype=torch.double, requires_grad=True)
    return weight, bias, rate


def inputs():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def trained(name, start, *, steps, sparse=True, **options):
    """The weights after training from `start`, as a function of it and of the options."""
    weight, bias = (tensor.clone() for tensor in start)
    if name == "SGD":
        # The first momentum is a detached gradient: torch cuts the graph there.
        options = {"momentum": 0.0, **options}
    optimizer = build(name, [weight, bias], differentiable=True, **options)
    if sparse:
        optimizer = SparseOptimizer(optimizer, **SETTINGS)
    for _ in range(steps):
        loss = (inputs() @ weight.T + bias).tanh().square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        optimizer.step()
    return weight, bias, optimizer


def outer_loss(weight, bias):
    return (inputs() @ weight.T + bias).square().sum()


def skip_unless_torch_differentiates(name, steps, rate):
    """Some optimizers overwrite what `backward()` needs, and no wrapper can restore it."""
    weight, bias, lr = meta_parameters()
    options = {"lr": lr} if rate else {}
    try:
        outer_loss(
            *trained(name, (weight, bias), steps=steps, sparse=False, **options)[:2]
        ).backward()
    except RuntimeError as error:
        pytest.skip(f"without a wrapper too: {str(error).partition(':')[0]}")


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_reach_the_initial_weights_through_steps_and_mask_updates(name, steps):
    """Compared with finite differences of the full training, in double precision."""
    skip_unless_torch_differentiates(name, steps, rate=False)
    weight, bias, _ = meta_parameters()

    def loss_after_training(weight, bias):
        return outer_loss(*trained(name, (weight, bias), steps=steps)[:2])

    assert torch.autograd.gradcheck(loss_after_training, (weight, bias), eps=1e-7, atol=1e-4)
    trained_weight, _, optimizer = trained(name, (weight, bias), steps=steps)
    assert len(optimizer.history) == steps // 2
    assert int(trained_weight.count_nonzero()) <= round(0.3 * weight.numel())
    assert torch.autograd.grad(trained_weight.square().sum(), weight)[0].any()


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("name", LEARNABLE_RATE)
def test_gradients_reach_a_learning_rate(name, steps):
    skip_unless_torch_differentiates(name, steps, rate=True)
    weight, bias, rate = meta_parameters()

    def loss_after_training(rate):
        return outer_loss(*trained(name, (weight, bias), steps=steps, lr=rate)[:2])

    assert torch.autograd.gradcheck(loss_after_training, (rate,), eps=1e-7, atol=1e-4)


def test_sparse_step_of_sgd_is_what_the_formula_says():
    """w' = m (w - lr m g(m w)), differentiated by hand where m is the mask."""
    weight, bias, rate = meta_parameters()
    sparse, _, optimizer = trained("SGD", (weight, bias), steps=1, lr=rate)
    mask = optimizer.masks["0.0"]
    live = torch.where(mask, weight, 0.0)
    loss = (inputs() @ live.T + bias).tanh().square().sum()
    (gradient,) = torch.autograd.grad(loss, live, create_graph=True)
    expected = torch.where(mask, live - rate * gradient, 0.0)
    torch.testing.assert_close(sparse, expected)
    for of in (weight, rate):
        mine, by_hand = (
            torch.autograd.grad(result.square().sum(), of, retain_graph=True)[0]
            for result in (sparse, expected)
        )
        torch.testing.assert_close(mine, by_hand)
    assert not torch.autograd.grad(sparse.square().sum(), weight)[0][~mask].any()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_leaves_are_refused_in_torchs_words(name):
    """An ordinary parameter cannot be stepped differentiably, with a wrapper or without."""

    def stepped(wrapped):
        weight = torch.ones(4, 4, requires_grad=True)
        optimizer = build(name, [weight], differentiable=True)
        if wrapped:
            optimizer = SparseOptimizer(optimizer, **SETTINGS)
        weight.grad = torch.ones(4, 4)
        before = weight.detach().clone()
        with pytest.raises(RuntimeError) as caught:
            optimizer.step()
        assert torch.equal(weight, before)
        return str(caught.value)

    assert re.search("leaf", stepped(wrapped=False))
    assert stepped(wrapped=True) == stepped(wrapped=False)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_live_state_is_refused_with_a_reason(name):
    """A 1-D tensor of live weights has no place in the graph of the weights."""
    weight, bias, _ = meta_parameters()
    inner = build(name, [weight.clone(), bias.clone()], differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True"):
        SparseOptimizer(inner, state="live", **SETTINGS)
