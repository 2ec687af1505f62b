"""Gradients are dense on steps that read them so, and zero at dropped weights on the others."""

import copy

import pytest
import torch

from sparseopt import SparseOptimizer, speed_up
from sparseopt.masks.layer import SparseLayer
from sparseopt.speedup.live_training import layer_state
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    DenseNet,
    Tokens,
    TorchvisionDenseNet,
    full_plan,
    loss_of,
    make,
    sped_up,
    train,
    wrap,
)

pytestmark = needs_kernels


def layer_of(optimizer, weight):
    return next(layer for layer in optimizer.layers if layer.weight is weight)


@pytest.fixture
def gathered(monkeypatch):
    """How many times live weights were gathered; every pass on live weights gathers once."""
    calls = []

    def counting(original):
        return lambda *args: calls.append(1) or original(*args)

    for name in ("live_values", "live_values_if_masked"):
        monkeypatch.setattr(layer_state, name, counting(getattr(layer_state, name)))
    return calls


@pytest.mark.parametrize("kind", [ConvNet, DenseNet, TorchvisionDenseNet, Tokens])
def test_update_steps_leave_the_gradient_of_torch_bit_by_bit(kind, gathered):
    model, optimizer = sped_up(kind, method="rigl")
    train(model, optimizer, 4)
    assert optimizer.is_update_step
    dense = copy.deepcopy(model)
    gathered.clear()
    optimizer.zero_grad()
    loss_of(model).backward()
    loss_of(dense).backward()
    assert gathered == []
    expected = dict(dense.named_parameters())
    for layer in optimizer.layers:
        assert layer.weight.grad[~layer.mask].any()
        assert torch.equal(layer.weight.grad, expected[layer.name].grad)


@pytest.mark.parametrize("kind", [ConvNet, DenseNet, TorchvisionDenseNet])
def test_accumulated_update_gradients_are_dense_and_whole(kind):
    model, optimizer = sped_up(kind, method="rigl")
    train(model, optimizer, 4)
    dense = copy.deepcopy(model)
    optimizer.zero_grad()
    for index in (1, 2):
        loss_of(model, index).backward()
        loss_of(dense, index).backward()
    for (_, mine), (_, theirs) in zip(
        model.named_parameters(), dense.named_parameters(), strict=True
    ):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.fixture
def masked(monkeypatch):
    """Names of layers whose gradients the hook has masked."""
    names = []
    original = SparseLayer._mask_

    def mask_(self, tensor, fill=0.0):
        if tensor is self.weight.grad:
            names.append(self.name)
        original(self, tensor, fill)

    monkeypatch.setattr(SparseLayer, "_mask_", mask_)
    return names


def test_ordinary_gradients_are_zero_at_dropped_weights_and_not_masked_again(masked):
    model, optimizer = sped_up(method="rigl", init="uniform")
    train(model, optimizer, 2)
    live = [layer for layer in optimizer.layers if not layer.is_full]
    assert len(live) >= 5
    # The kernels don't know grouped convolutions, which are masked as ever.
    assert set(masked) == {"grouped.weight"}
    for layer in live:
        assert not layer.weight.grad[~layer.mask].any()
        assert layer.weight.grad[layer.mask].any()


@pytest.mark.parametrize("added", ["before the model's", "after the model's"])
def test_another_gradient_of_the_same_weight_is_masked(masked, added):
    """Autograd computes the gradient of what came last in the forward pass first."""
    model, optimizer = sped_up(method="rigl", init="uniform")
    optimizer.zero_grad()
    weight = model.block.conv1.weight
    if added == "before the model's":
        loss = loss_of(model)
        loss = loss + (weight - 1).square().sum()
    else:
        penalty = (weight - 1).square().sum()
        loss = loss_of(model) + penalty
    loss.backward()
    assert "block.conv1.weight" in masked
    layer = layer_of(optimizer, weight)
    assert not weight.grad[~layer.mask].any()
    assert weight.grad[layer.mask].any()


def adds_in_place(gradient):
    gradient.add_(1.0)


def adds_through_data(gradient):
    gradient.data.add_(1.0)


def adds_to_a_copy(gradient):
    return gradient + 1.0


@pytest.mark.parametrize("hook", [adds_in_place, adds_through_data, adds_to_a_copy])
def test_gradient_that_a_hook_of_the_weight_changes_is_masked(hook):
    model, optimizer = sped_up(method="rigl", init="uniform")
    layer = layer_of(optimizer, model.block.conv1.weight)
    expected = copy.deepcopy(model)
    loss_of(expected).backward()
    grad = expected.block.conv1.weight.grad + 1.0
    layer.weight.register_hook(hook)
    loss_of(model).backward()
    grad = grad.masked_fill(~layer.mask, 0)
    torch.testing.assert_close(layer.weight.grad, grad, rtol=1e-3, atol=1e-5)


def test_gradient_that_an_earlier_hook_changes_after_its_accumulation_is_masked():
    model = make()
    weight = model.block.conv1.weight
    weight.register_post_accumulate_grad_hook(lambda parameter: adds_in_place(parameter.grad))
    optimizer = wrap(model, method="rigl", init="uniform")
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    loss_of(model).backward()
    layer = layer_of(optimizer, weight)
    assert not weight.grad[~layer.mask].any()
    assert weight.grad[layer.mask].all()


@pytest.mark.parametrize("kind", [ConvNet, DenseNet, TorchvisionDenseNet])
def test_accumulated_gradients_are_those_of_a_dense_model(kind):
    model, optimizer = sped_up(kind, method="rigl")
    dense = copy.deepcopy(model)
    for index in (1, 2, 3):
        loss_of(model, index).backward()
        loss_of(dense, index).backward()
    expected = dict(dense.named_parameters())
    for layer in optimizer.layers:
        grad = expected[layer.name].grad.masked_fill(~layer.mask, 0)
        torch.testing.assert_close(layer.weight.grad, grad, rtol=1e-3, atol=1e-5)


def test_masks_that_moved_are_followed(gathered):
    model, optimizer = sped_up(method="set")
    before = optimizer.masks
    train(model, optimizer, 5)
    assert optimizer.history[0].grown > 0
    assert any(not torch.equal(mask, optimizer.masks[name]) for name, mask in before.items())
    dense = copy.deepcopy(model)
    gathered.clear()
    torch.testing.assert_close(loss_of(model), loss_of(dense))
    assert len(gathered) >= 5


def test_snfs_stays_dense_while_its_masks_move(gathered):
    model, optimizer = sped_up(method="snfs")
    train(model, optimizer, 29)
    assert gathered == []
    train(model, optimizer, 3, start=29)
    assert gathered


def changed_in_place(weight):
    with torch.no_grad():
        weight.add_(0.01)


def changed_through_data(weight):
    weight.data.add_(0.01)


def changed_by_another_tensor(weight):
    weight.data = weight.data + 0.01


@pytest.mark.parametrize(
    "change", [changed_in_place, changed_through_data, changed_by_another_tensor]
)
@pytest.mark.parametrize("kind", [ConvNet, Tokens])
def test_weights_outside_of_the_mask_count(kind, change):
    """An average may be swapped in for evaluation, or SAM may perturb the weights."""
    model, optimizer = sped_up(kind, method="static", init="uniform")
    for weight in [layer.weight for layer in optimizer.layers]:
        change(weight)
    dense = copy.deepcopy(model)
    for training in (True, False):
        model.train(training)
        dense.train(training)
        torch.testing.assert_close(loss_of(model), loss_of(dense))
    # Masked again, they run on live weights again.
    optimizer.apply_masks(model)
    optimizer.apply_masks(dense)
    torch.testing.assert_close(loss_of(model), loss_of(dense))


def test_layer_runs_on_live_weights_again_once_others_are_zero(gathered):
    model, optimizer = sped_up(Tokens, method="static", init="uniform")
    changed_in_place(model.down.weight)
    loss_of(model).backward()
    mask = optimizer.masks["down.weight"]
    assert not model.down.weight.grad[~mask].any()
    assert model.down.weight.grad[mask].any()
    optimizer.apply_masks(model)
    gathered.clear()
    loss_of(model)
    assert len(gathered) == 2


def test_model_that_loads_dense_weights_computes_with_all_of_them():
    model, optimizer = sped_up(method="static")
    dense = make(seed=7)
    model.load_state_dict(dense.state_dict())
    torch.testing.assert_close(loss_of(model), loss_of(dense))
    assert optimizer.layers


def two_layers():
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))


def two_convolutions():
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3))


def one_layer():
    return torch.nn.Sequential(torch.nn.Linear(32, 32))


def with_live_layers(model, x, **settings):
    settings = {"method": "static", "density": 0.25, "total_steps": 100, **settings}
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **settings)
    shape = "x".join(map(str, x.shape))
    speed_up(model, optimizer, plan={str(place): {shape: "live"} for place in range(len(model))})
    return optimizer


@pytest.mark.parametrize("step", ["optimizer", "plain"])
@pytest.mark.parametrize(
    ("make_model", "x"),
    [(two_layers, torch.ones(4, 32)), (two_convolutions, torch.ones(2, 4, 8, 8))],
)
def test_backward_through_weights_that_a_step_has_changed_raises_torchs_error(make_model, x, step):
    model = make_model()
    optimizer = with_live_layers(model, x)
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    if step == "optimizer":
        optimizer.step()
    else:
        with torch.no_grad():
            model[1].weight.mul_(0.5)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        loss.backward()


def test_backward_after_a_step_is_right_where_no_gradient_needs_the_weight(gathered):
    model, x = one_layer(), torch.randn(4, 32)
    optimizer = with_live_layers(model, x)
    plain = copy.deepcopy(model)
    loss, expected = model(x).square().mean(), plain(x).square().mean()
    assert gathered
    expected.backward()
    loss.backward(retain_graph=True)
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    mask = optimizer.layers[0].mask
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad * mask)


@pytest.mark.filterwarnings("ignore:delta_t=1")
def test_gradient_of_a_pass_before_the_masks_moved_is_masked(gathered):
    model, x = one_layer(), torch.randn(4, 32)
    optimizer = with_live_layers(model, x, method="set", delta_t=1)
    loss = model(x).square().mean()
    assert gathered
    loss.backward(retain_graph=True)
    optimizer.step()
    assert optimizer.history[0].grown > 0
    optimizer.zero_grad()
    loss.backward()
    layer = optimizer.layers[0]
    assert not layer.weight.grad[~layer.mask].any()
    assert layer.weight.grad[layer.mask].any()


@pytest.mark.filterwarnings("ignore:delta_t=2")
def test_forward_pass_before_a_step_raises_an_error_at_the_update_that_reads_all_gradients():
    model, x = one_layer(), torch.randn(4, 32)
    optimizer = with_live_layers(model, x, method="rigl", delta_t=2)
    ahead = model(x).square().mean()
    loss, ahead = ahead, model(x).square().mean()
    loss.backward()
    optimizer.step()
    assert optimizer.is_update_step
    with pytest.raises(RuntimeError, match=r"'0.weight' came before the last step\(\)"):
        ahead.backward()
