"""Models that are moved, or converted to another precision, after they were wrapped."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import make
from tests.support.training import train
from tests.support.wrapping import wrap


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_survive_a_move_between_wrapping_and_loading(dtype, device, state):
    """The masks at construction have set weights to zero that are live in the checkpoint."""
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 12)
    weights, saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    other = make(seed=1)
    other.load_state_dict(weights)
    resumed = wrap(other, seed=4, state=state)
    other.to(device=device, dtype=dtype)
    resumed.load_state_dict(saved)

    for name, value in other.state_dict().items():
        assert torch.equal(value, weights[name].to(device=device, dtype=dtype)), name


def test_masks_are_where_the_model_is():
    """Without a GPU: with tensors that only claim to be on one."""
    model = nn.Linear(64, 64, bias=False)
    optimizer = wrap(model)
    layer = optimizer.layers[0]
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        layer._index, layer._ever = map(fakes.from_tensor, (layer._index, layer._ever))
        layer.weight = nn.Parameter(torch.empty(64, 64, device="cuda"))
        assert optimizer.masks["weight"].device.type == "cuda"


def test_masks_can_be_read_as_soon_as_the_model_was_moved(device, state):
    model = make()
    optimizer = wrap(model, state=state)
    before = {name: mask.clone() for name, mask in optimizer.masks.items()}
    model.to(device)
    for name, mask in optimizer.masks.items():
        assert mask.device.type == device
        assert torch.equal(mask.cpu(), before[name])


def test_gradients_are_masked_after_torch_swapped_the_tensors(state):
    """torch moves DTensors in this way, and all parameters if this option is set."""
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 2)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.zero_grad()
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    optimizer.state_dict()
    inputs = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    model(inputs).square().mean().backward()
    for layer in optimizer.layers:
        assert not layer.weight.grad[~layer.mask].any()
        assert layer.weight.grad[layer.mask].any()


def test_model_that_was_moved_trains_on(device, state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 7)
    model.to(device)
    train(model, optimizer, 7, start=7)
    assert_dropped_are_fresh(optimizer)
