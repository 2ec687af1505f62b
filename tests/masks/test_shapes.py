"""A weight whose shape changes in place, and tensors that do not have the weight's shape."""

import pytest
import torch
from torch import nn

from tests.support.wrapping import wrap

ROWS, MORE = 160, 100


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, ROWS))


def grow(model):
    """More classes, as in class-incremental training."""
    head = model[2]
    head.weight.data = torch.cat([head.weight.data, torch.ones(MORE, 128)])
    head.bias.data = torch.cat([head.bias.data, torch.zeros(MORE)])


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 64)).logsumexp(-1).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("density", [0.2, 0.5])
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_sparse_layer_whose_weight_grew_in_place_is_named_and_not_written(density, method, state):
    model = net()
    optimizer = wrap(model, method=method, density=density, init={}, state=state, delta_t=2)
    step(model, optimizer)
    optimizer.zero_grad()
    grow(model)
    with pytest.raises(ValueError, match=r"layer '2\.weight' .*\(160, 128\).*\(260, 128\)"):
        step(model, optimizer)
    assert torch.equal(model[2].weight[ROWS:], torch.ones(MORE, 128))


def test_dense_layer_grows_as_with_the_plain_optimizer(state):
    model, plain_model = net(), net()
    optimizer = wrap(model, method="static", init={"2": 1.0, "*": 1.0}, state=state)
    plain = torch.optim.SGD(plain_model.parameters(), **dict(optimizer.inner.defaults))
    for own, one in ((model, optimizer), (plain_model, plain)):
        torch.manual_seed(1)
        if one.defaults["momentum"]:
            one.param_groups[0]["momentum"] = 0.0
        step(own, one)
        one.zero_grad()
        grow(own)
        step(own, one)
    for weight, other in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(weight, other)
    assert optimizer.density == 1.0
    assert optimizer.masks["2.weight"].all()
    assert optimizer.masks["2.weight"].shape == (ROWS + MORE, 128)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_gather_refuses_a_tensor_of_another_shape(density):
    layer = wrap(net(), density=density, init={}).layers[0]
    with pytest.raises(ValueError, match=r"'0\.weight' .*\(128, 64\).*\(3,\)"):
        layer.gather(torch.zeros(3))


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_masks_are_copies(density):
    optimizer = wrap(net(), density=density, init={})
    before = {name: mask.clone() for name, mask in optimizer.masks.items()}
    for mask in [*optimizer.masks.values(), *(layer.mask for layer in optimizer.layers)]:
        mask.logical_not_()
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, before[name])
