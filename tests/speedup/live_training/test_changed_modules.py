"""What users do to modules and tensors of a sped-up model has the effect that it has in torch."""

import copy
import io
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparseopt import speed_up
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import ConvNet, full_plan, images, sped_up, wrap

pytestmark = needs_kernels


def small(*modules, x=None, **changes):
    """A sequence of modules, sped up."""
    torch.manual_seed(0)
    model = nn.Sequential(*modules)
    optimizer = wrap(model, method="static", init="uniform", **changes)
    speed_up(model, optimizer, plan=full_plan(model, optimizer, x))
    return model, optimizer


def normalised():
    return small(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1),
    )


def plain_copy(model):
    """A copy has torch's own classes."""
    copied = copy.deepcopy(model)
    assert type(copied[0]) is nn.Conv2d
    return copied


@pytest.mark.parametrize(
    "changes",
    [
        {"dilation": (2, 2), "padding": (2, 2)},
        {"stride": (2, 2)},
        {"padding": (0, 1)},
        {"padding_mode": "circular", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
    ],
    ids=["dilation", "stride", "padding", "padding mode"],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_changed_geometry_of_a_convolution_is_computed(changes, kernel):
    model, _ = small(nn.Conv2d(3, 8, kernel, padding=kernel // 2, bias=False))
    dense = plain_copy(model)
    for net in (model, dense):
        vars(net[0]).update(changes)
    torch.testing.assert_close(model(images()), dense(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (8, 3, 5, 5)], ids=["more filters", "larger"])
def test_weight_that_gets_another_shape_is_computed(shape):
    model, _ = small(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    dense = plain_copy(model)
    weight = torch.randn(shape)
    for net in (model, dense):
        net[0].weight.data = weight.clone()
    torch.testing.assert_close(model(images()), dense(images()), rtol=1e-5, atol=1e-6)


def circular(module, x, weight, bias):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)


@pytest.mark.parametrize("is_late", [False, True])
def test_own_function_of_a_convolution_is_called(is_late):
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    if not is_late:
        conv._conv_forward = types.MethodType(circular, conv)
    model, _ = small(conv)
    conv._conv_forward = types.MethodType(circular, conv)
    expected = circular(conv, images(), conv.weight, None)
    torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-6)


def test_convolution_with_its_own_function_is_not_measured():
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    conv._conv_forward = types.MethodType(circular, conv)
    model = nn.Sequential(conv)
    assert full_plan(model, wrap(model, init="uniform")) == {"0": {"6x3x9x9": "dense"}}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_may_separate_a_normalisation_from_its_nonlinearity(reentrant):
    model, _ = normalised()
    gradients = []
    for net in (model, plain_copy(model)):
        y = checkpoint(net[2:], net[:2](images()), use_reentrant=reentrant)
        y.square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected * (mine != 0), rtol=1e-4, atol=1e-4)


def test_hook_of_a_normalised_map_that_the_nonlinearity_has_read_gets_the_gradient():
    model, _ = normalised()
    seen = []

    def forward(net):
        y = net[1](net[0](images()))
        z = net[2](y)
        y.register_hook(seen.append)
        return net[3](z)

    for net in (model, plain_copy(model)):
        forward(net).square().sum().backward()
    mine, expected = seen
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_file_of_a_normalised_map_has_the_map_alone():
    model, _ = normalised()
    y = model[:2](images())
    file, expected = io.BytesIO(), io.BytesIO()
    torch.save(y, file)
    torch.save(y.detach().clone(), expected)
    assert len(file.getvalue()) < 1.2 * len(expected.getvalue())


def test_gradient_that_was_only_asked_for_leaves_the_next_one_masked():
    """The memory of the first gradient is used again for the second."""
    model, optimizer = small(nn.Linear(64, 64, bias=False), x=torch.randn(8, 64))
    weight, (layer,) = model[0].weight, optimizer.layers
    for _ in range(20):
        torch.autograd.grad(model(torch.randn(8, 64)).sum(), weight)
        F.linear(torch.randn(8, 64), weight).square().sum().backward()
        assert not weight.grad[~layer.mask].any()
        assert weight.grad[layer.mask].any()
        weight.grad = None


@pytest.mark.parametrize("init", ["uniform", "erk"])
def test_empty_batch_is_computed_by_every_implementation(init):
    model, _ = small(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), density=0.5)
    y = model(images()[:0])
    assert y.shape == (0, 4, 7, 7)
    y.sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_model_can_be_traced_by_fx():
    model, _ = sped_up(ConvNet)
    traced = torch.fx.symbolic_trace(model)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {"stem", "block.conv1", "block.norm1", "max", "head"} <= called
    torch.testing.assert_close(traced.eval()(images()), model.eval()(images()))
    for module in copy.deepcopy(model).modules():
        assert "__module__" not in vars(module)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripted_model_computes_the_same_and_the_model_stays_sped_up():
    model, _ = normalised()
    before = list(model.modules())
    scripted = torch.jit.script(model.eval())
    torch.testing.assert_close(scripted(images()), model(images()), rtol=1e-4, atol=1e-5)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert type(model[0]) is not nn.Conv2d


class KeepsItsLoss(nn.Module):
    """Keeps a tensor that has a graph, such as an auxiliary loss."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, x):
        hidden = F.relu(self.first(x))
        self.auxiliary = hidden.square().mean()
        return self.second(hidden).mean((2, 3))


def test_model_that_keeps_a_computed_tensor_is_measured():
    model = KeepsItsLoss()
    optimizer = wrap(model)
    model(images()).sum().backward()
    optimizer.step()
    handle = speed_up(model, optimizer)
    (model(images()).sum() + model.auxiliary).backward()
    assert "first" in handle.report
    assert "measuring failed" not in handle.report


def test_default_device_of_torch_does_not_move_the_kernels_tensors():
    """As in a script that made its model on the CPU and sets an accelerator afterwards."""
    model, optimizer = small(nn.Linear(64, 64), x=torch.randn(8, 64))
    x, dense = torch.randn(8, 64), copy.deepcopy(model)
    plan = full_plan(model, optimizer, x)
    try:
        torch.set_default_device("meta")
        handle = speed_up(dense, other := wrap(dense, init="uniform", method="static"), plan=plan)
        dense(x).sum().backward()
        handle.undo()
    finally:
        torch.set_default_device(None)
    for layer in other.layers:
        assert not layer.weight.grad[~layer.mask].any()
        assert layer.weight.grad[layer.mask].any()
    expected = nn.Linear(64, 64)
    expected.load_state_dict(dense[0].state_dict())
    torch.testing.assert_close(dense(x), expected(x))
