"""With a speed-up, all other features work as without it."""

import copy
import io
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparseopt import condense, speed_up
from sparseopt.utils.hooks import copy_without_hooks, has_hooks
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    DenseNet,
    Tokens,
    TorchvisionDenseNet,
    full_plan,
    images,
    labels,
    loss_of,
    make,
    sped_up,
    train,
    wrap,
)

pytestmark = needs_kernels


def dense(kind=ConvNet, **changes):
    model = make(kind)
    return model, wrap(model, **changes)


def assert_same_way(loop, steps=7, kind=ConvNet, **changes):
    """Run a loop, `loop(model, optimizer, steps)`, both ways over a mask update."""
    runs = []
    for make_pair in (dense, sped_up):
        model, optimizer = make_pair(kind, **changes)
        runs.append((loop(model, optimizer, steps), model, optimizer))
    (losses, model, optimizer), (fast_losses, fast_model, fast_optimizer) = runs
    assert fast_losses == pytest.approx(losses, rel=2e-3)
    assert len(fast_optimizer.history) == len(optimizer.history)
    for name, mask in optimizer.masks.items():
        assert torch.equal(fast_optimizer.masks[name], mask), name
    for (name, mine), theirs in zip(fast_model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-4, msg=name)
    for layer in fast_optimizer.layers:
        assert not layer.weight[~layer.mask].any()


def clipped(model, optimizer, steps):
    norms = []
    for index in range(steps):
        optimizer.zero_grad()
        loss_of(model, index).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    return norms


def scaled(model, optimizer, steps):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for index in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, index)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return losses


def accumulated(model, optimizer, steps):
    losses = []
    for index in range(steps):
        optimizer.zero_grad()
        for part in range(3):
            loss = loss_of(model, 3 * index + part) / 3
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
    return losses


def by_closure(model, optimizer, steps):
    losses = []
    for index in range(steps):

        def closure(index=index):
            optimizer.zero_grad()
            loss = loss_of(model, index)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses


def evaluated_between(model, optimizer, steps):
    losses = []
    for index in range(steps):
        losses += train(model, optimizer, 1, start=index)
        model.eval()
        with torch.no_grad():
            losses.append(float(loss_of(model, 50)))
        model.train()
    return losses


def called_twice(model, optimizer, steps):
    losses = []
    for index in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, index) + loss_of(model, index + 20, size=3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def changing_sizes(model, optimizer, steps):
    losses = []
    for index in range(steps):
        size, side = 2 + index % 4, 8 + index % 3
        losses += train(
            model, optimizer, 1, index, lambda net, i, n=size, m=side: loss_of(net, i, n, m)
        )
    return losses


def without_setting_to_none(model, optimizer, steps):
    losses = []
    for index in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model, index)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def with_functional_copies(model, optimizer, steps):
    losses = []
    for index in range(steps):
        losses += train(model, optimizer, 1, start=index)
        parameters = {name: one.detach() * 0.5 for name, one in model.named_parameters()}
        with torch.no_grad():
            out = torch.func.functional_call(model.eval(), parameters, (images(index),))
        losses.append(float(F.cross_entropy(out, labels(index))))
        model.train()
    return losses


@pytest.mark.parametrize(
    "loop",
    [
        clipped,
        scaled,
        accumulated,
        by_closure,
        evaluated_between,
        called_twice,
        changing_sizes,
        without_setting_to_none,
        with_functional_copies,
    ],
)
@pytest.mark.parametrize("kind", [ConvNet, DenseNet, Tokens])
def test_loop_goes_the_same_way(loop, kind):
    assert_same_way(loop, kind=kind, method="rigl")


@pytest.mark.parametrize("method", ["set", "srigl", "mest", "granet", "pruning", "static"])
def test_method_goes_the_same_way(method):
    assert_same_way(train, steps=11, method=method, density=0.5)


@pytest.mark.parametrize("state", ["live", "masked"])
def test_state_goes_the_same_way(state):
    assert_same_way(train, method="rigl", state=state)


def test_adamw_and_channels_last_weights_go_the_same_way():
    def loop(model, optimizer, steps):
        model.to(memory_format=torch.channels_last)
        return train(model, optimizer, steps)

    assert_same_way(loop, method="rigl")


def frozen_later(model, optimizer, steps):
    losses = train(model, optimizer, 2)
    model.block.conv1.weight.requires_grad_(False)
    model.stem.requires_grad_(False)
    losses += train(model, optimizer, steps - 3, start=2)
    assert model.block.conv1.weight.grad is None
    model.block.conv1.weight.requires_grad_(True)
    return losses + train(model, optimizer, 1, start=steps)


def test_frozen_layers_go_the_same_way():
    assert_same_way(frozen_later, method="rigl")


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_goes_the_same_way(reentrant):
    def loop(model, optimizer, steps):
        forward = model.block.forward
        model.block.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
        return train(model, optimizer, steps)

    assert_same_way(loop, method="rigl")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("steps", [2, 4], ids=["ordinary", "update"])
def test_checkpointing_draws_dropout_again(reentrant, steps):
    model = make(p=0.5)
    optimizer = wrap(model, method="rigl")
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    train(model, optimizer, steps)
    assert optimizer.is_update_step == (steps == 4)
    gradients = []
    forward = model.block.forward
    for with_checkpoint in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        if with_checkpoint:
            model.block.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
        loss_of(model).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [ConvNet, DenseNet, TorchvisionDenseNet, Tokens])
def test_gradient_of_the_gradient(kind):
    """Derivatives of second order, as in a gradient penalty."""
    results = []
    for make_pair in (dense, sped_up):
        model, optimizer = make_pair(kind, method="static")
        x = images().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        results.append((slope, [p.grad for p in model.parameters()]))
        assert optimizer.layers
    (slope, gradients), (fast_slope, fast_gradients) = results
    torch.testing.assert_close(fast_slope, slope, rtol=1e-3, atol=1e-5)
    for found, expected in zip(fast_gradients, gradients, strict=True):
        if expected is None:
            assert found is None
        else:
            scale = float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4 * (1 + scale))


def test_gradients_per_sample():
    model, optimizer = sped_up(Tokens, method="static")
    plain = copy.deepcopy(model)

    def loss(parameters, x, y, net):
        return F.cross_entropy(torch.func.functional_call(net, parameters, (x[None],)), y[None])

    def of(net):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, None))
        return each(dict(net.named_parameters()), images(), labels(), net)

    for found, expected in zip(of(model).values(), of(plain).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert optimizer.layers


@pytest.mark.parametrize("before", [dense, sped_up])
@pytest.mark.parametrize("after", [dense, sped_up])
def test_resumed_run_goes_the_same_way_with_and_without(before, after):
    whole_model, whole_optimizer = dense(method="rigl")
    losses = train(whole_model, whole_optimizer, 12)

    model, optimizer = before(method="rigl")
    train(model, optimizer, 6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed, resumed_optimizer = after(method="rigl")
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    found = train(resumed, resumed_optimizer, 6, start=6)
    assert found == pytest.approx(losses[6:], rel=1e-2)


def test_state_dicts_have_the_same_keys():
    model, optimizer = sped_up()
    plain, plain_optimizer = dense()
    train(model, optimizer, 2)
    train(plain, plain_optimizer, 2)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert str(optimizer.state_dict().keys()) == str(plain_optimizer.state_dict().keys())
    assert type(model.state_dict()["stem.weight"]) is type(plain.state_dict()["stem.weight"])


def test_average_of_a_model_is_right():
    model, optimizer = sped_up(method="rigl")
    average = torch.optim.swa_utils.AveragedModel(model)
    for index in range(7):
        train(model, optimizer, 1, start=index)
        average.update_parameters(model)
    plain = make()
    plain.load_state_dict(average.module.state_dict())
    torch.testing.assert_close(average.eval()(images()), plain.eval()(images()))


def test_hooks_of_the_user_are_called_once_a_pass():
    model, optimizer = sped_up()
    calls = []
    model.block.conv1.register_forward_hook(lambda *_: calls.append("forward"))
    model.block.conv1.register_full_backward_hook(lambda *_: calls.append("backward"))
    loss_of(model).backward()
    assert calls == ["forward", "backward"]
    assert optimizer.holder is not None


def test_parametrization_that_comes_later_computes_the_weight():
    model, optimizer = sped_up(Tokens, method="static")
    nn.utils.parametrizations.spectral_norm(model.up)
    plain = copy.deepcopy(model).eval()
    torch.testing.assert_close(model.eval()(images()), plain(images()))
    optimizer.holder.undo()
    torch.testing.assert_close(model(images()), plain(images()))


def test_other_number_formats_stay_dense():
    model, optimizer = sped_up(method="static")
    model.double()
    plain = copy.deepcopy(model)
    torch.testing.assert_close(loss_of(model), loss_of(plain))
    model.bfloat16()
    plain.bfloat16()
    torch.testing.assert_close(loss_of(model), loss_of(plain), rtol=2e-2, atol=2e-2)
    model.float()
    plain.float()
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(loss_of(model), loss_of(plain), rtol=2e-2, atol=2e-2)
    assert optimizer.layers


def test_wrong_input_raises_the_error_of_torch():
    model, optimizer = sped_up()
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.ones(2, 4, 9, 9))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model.hidden(torch.ones(2, 4))
    assert optimizer.layers


def test_maps_without_a_batch_are_taken():
    model, optimizer = sped_up(method="static")
    plain = copy.deepcopy(model)
    torch.testing.assert_close(
        model.block.conv2(images()[0].repeat(4, 1, 1)),
        plain.block.conv2(images()[0].repeat(4, 1, 1)),
    )
    assert optimizer.layers


class Segments(nn.Sequential):
    """It returns maps, in a dict."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        return {"maps": super().forward(x)}


def test_maps_that_the_model_returns_have_the_layout_that_they_have_without_a_speed_up():
    def loop(model, optimizer, steps):
        seen = []
        handle = model.register_forward_hook(
            lambda module, args, outputs: seen.append(outputs["maps"].is_contiguous())
        )
        target = images(1).mean(1).flatten()

        def loss_of_maps(model, index):
            maps = model(images(index))["maps"]
            return F.mse_loss(maps[:, :1].contiguous().view(-1), target) + maps.view(-1).mean()

        losses = train(model, optimizer, steps, loss=loss_of_maps)
        handle.remove()
        assert all(seen)
        return losses

    assert_same_way(loop, kind=Segments)


@dataclass
class Output:
    maps: torch.Tensor
    other: object = None
    unset: torch.Tensor = field(init=False)


class SegmentsIntoObjects(Segments):
    """Its output is an object that refers to itself, and has a field without a value."""

    def forward(self, x):
        output = Output(super().forward(x)["maps"])
        output.other = output
        return output


def test_maps_in_objects_that_the_model_returns_can_be_viewed():
    def loop(model, optimizer, steps):
        def loss_of_maps(model, index):
            output = model(images(index))
            assert output.other is not None
            return output.maps.view(-1).square().mean()

        return train(model, optimizer, steps, loss=loss_of_maps)

    assert_same_way(loop, kind=SegmentsIntoObjects)


def test_outputs_without_maps_are_the_same_objects():
    kept = []

    class Keeps(ConvNet):
        def forward(self, x):
            kept.append({"logits": super().forward(x)})
            return kept[-1]

    model = make(Keeps)
    optimizer = wrap(model)
    speed_up(model, optimizer)
    assert model(images()) is kept[-1]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy_without_hooks])
def test_copies_of_a_sped_up_model_compute_and_are_traced_as_without_it(copied):
    model, optimizer = sped_up(Segments)
    other = copied(model).eval()
    expected = model.eval()(images())["maps"]
    torch.testing.assert_close(other(images())["maps"], expected, rtol=1e-4, atol=1e-5)
    if copied is copy_without_hooks:
        assert not has_hooks(other)
    condensed = condense(
        model, optimizer, example_inputs=images(), scripted=False, compiled=False, rounds=1
    )
    assert "folding" not in condensed.report.failed


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_sped_up_model_is_scripted_without_the_hooks():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    optimizer = wrap(model)
    expected = model(images())
    speed_up(model, optimizer)
    torch.testing.assert_close(torch.jit.script(model)(images()), expected)
