"""What fails on the way leaves the whole model and optimizer, and they train on."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, find_channel_groups
from sparseopt.speedup.compacted_training import parameter_swap
from sparseopt.speedup.compacted_training import state as compacted_state
from tests.speedup.compacted_training.sameness import assert_same_training
from tests.support.catalogue import build
from tests.support.channel_nets import INPUT, ChannelNet
from tests.support.nets import loss_of, make
from tests.support.training import train


@cache
def groups():
    return find_channel_groups(make(ChannelNet), INPUT)


def wrapped():
    model = make(ChannelNet, dtype=torch.float64)
    method = RigLStruct(groups=groups())
    inner = build("AdamW", model.parameters())
    return model, SparseOptimizer(
        inner, model, method=method, density=0.25, init={}, total_steps=40, delta_t=4,
        alpha=0.6, seed=3,
    )  # fmt: skip


def failing(function, after):
    """Return ``function`` that runs out of memory in call number ``after`` + 1."""
    calls = 0

    def fails(*args):
        nonlocal calls
        calls += 1
        if calls > after:
            raise torch.OutOfMemoryError("no memory left")
        return function(*args)

    return fails


#: A function that makes the model or the state smaller, and after how many calls it fails.
PLACES = [
    (parameter_swap, "shrunk", 0),
    (parameter_swap, "shrunk", 9),
    (parameter_swap, "shrunk", 30),
    (parameter_swap, "resize", 0),
    (parameter_swap, "resize", 3),
    (compacted_state, "_shaped", 0),
    (compacted_state, "_shaped", 5),
]


@pytest.mark.parametrize(("module", "name", "after"), PLACES)
@pytest.mark.parametrize("steps", [0, 5])
def test_failure_while_it_becomes_smaller_is_undone(monkeypatch, module, name, after, steps):
    expected = wrapped()
    train(*expected, 12)
    model, optimizer = wrapped()
    whole = list(model.parameters())
    shown = repr(model)
    train(model, optimizer, steps)
    with CompactedTraining(model, optimizer) as training:
        training.restore()
        optimizer.zero_grad()
        loss_of(model, steps + 1).backward()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing(getattr(module, name), after))
            with pytest.raises(torch.OutOfMemoryError):
                optimizer.step()
        assert training.is_full
        assert repr(model) == shown
        parameters = optimizer.param_groups[0]["params"]
        for own in (model.parameters(), parameters):
            assert all(mine is theirs for mine, theirs in zip(own, whole, strict=True))
        train(model, optimizer, 12 - steps - 1, start=steps + 1)
    assert_same_training(model, optimizer, *expected)


def test_training_that_fails_at_once_leaves_no_hook(monkeypatch):
    model, optimizer = wrapped()
    with monkeypatch.context() as patch:
        patch.setattr(parameter_swap, "resize", failing(parameter_swap.resize, 3))
        with pytest.raises(torch.OutOfMemoryError):
            CompactedTraining(model, optimizer, example_inputs=INPUT.double())
    train(model, optimizer, 3)
    assert model.wide.weight.shape[0] == 8


def test_model_that_can_not_run_on_the_inputs_leaves_no_hook():
    model, optimizer = wrapped()
    with pytest.raises(RuntimeError, match="channels"):
        CompactedTraining(
            model, optimizer, example_inputs=torch.zeros(2, 4, 6, 6, dtype=torch.float64)
        )
    train(model, optimizer, 3)
    assert model.wide.weight.shape[0] == 8


def interrupt_after_forward(model, optimizer, steps):
    with CompactedTraining(model, optimizer):
        train(model, optimizer, steps)
        loss_of(model, steps + 1)
        raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [5, 7])
def test_model_is_full_and_trains_on_after_an_error_in_the_loop(steps):
    """Between a forward pass and its backward pass, of an ordinary step and of an update."""
    expected = wrapped()
    train(*expected, steps)
    loss_of(expected[0], steps + 1)
    train(*expected, 12 - steps, start=steps)
    model, optimizer = wrapped()
    with pytest.raises(KeyboardInterrupt):
        interrupt_after_forward(model, optimizer, steps)
    assert model.wide.weight.shape[0] == 8
    train(model, optimizer, 12 - steps, start=steps)
    assert_same_training(model, optimizer, *expected)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("one_process")
def test_data_parallel_training_of_one_process_is_refused(compiled):
    model, optimizer = wrapped()
    parallel = nn.parallel.DistributedDataParallel(model)
    given = torch.compile(parallel, backend="eager") if compiled else parallel
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        CompactedTraining(given, optimizer)
    train(parallel, optimizer, 3)
    assert model.wide.weight.shape[0] == 8


@pytest.mark.usefixtures("one_process")
def test_model_inside_data_parallel_training_is_refused_too():
    model = make(ChannelNet)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = SparseOptimizer(
        build("SGD", parallel.parameters()), parallel, method=RigLStruct(groups=groups()),
        density=0.25, init={}, total_steps=40, delta_t=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        CompactedTraining(model, optimizer)


def test_model_that_was_moved_meanwhile_becomes_whole_as_it_is_now():
    model, optimizer = wrapped()
    with CompactedTraining(model, optimizer):
        train(model, optimizer, 2)
        model.float()
        values = model.wide.weight.detach().clone()
    live = optimizer.masks["wide.weight"].flatten(1).any(1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    columns = optimizer.masks["wide.weight"].flatten(2).any(2).any(0)
    assert torch.equal(model.wide.weight[live][:, columns], values)


def test_method_that_observes_every_step_is_refused():
    @dataclass(frozen=True)
    class Watching(RigLStruct):
        def observe(self, layer, gradient, update):
            pass

    model = make(ChannelNet)
    inner = build("SGD", model.parameters())
    optimizer = SparseOptimizer(inner, model, method=Watching(groups=groups()), total_steps=1000)
    with pytest.raises(TypeError, match="'rigl-struct' reads the gradients of all weights"):
        CompactedTraining(model, optimizer)
