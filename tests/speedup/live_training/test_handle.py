"""The owner of a speed-up, the end of a speed-up, and its errors."""

import copy
import gc
import logging
import pickle
import weakref

import pytest
import torch
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, find_channel_groups, speed_up
from sparseopt.speedup import kernels
from sparseopt.speedup.live_training import measurement
from sparseopt.speedup.live_training.layer_state import LayerState
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    Tokens,
    full_plan,
    images,
    loss_of,
    make,
    train,
    wrap,
)


def classes_of(model):
    return {name: type(module) for name, module in model.named_modules()}


def look_of(model):
    """All attributes of a module except parameters and buffers."""
    return {name: set(vars(module)) for name, module in model.named_modules()}


def undo(optimizer, handle):
    handle.undo()


def leave(optimizer, handle):
    with handle:
        pass


def detach(optimizer, handle):
    optimizer.detach()


@needs_kernels
@pytest.mark.parametrize("end", [undo, leave, detach])
def test_ending_leaves_the_model_as_it_was(end):
    model = make()
    look_unwrapped = look_of(model)
    optimizer = wrap(model)
    # A detached optimizer also removes its own hooks from the model.
    look = look_unwrapped if end is detach else look_of(model)
    classes, text = classes_of(model), repr(model)
    hooks = len(model._forward_pre_hooks)
    handle = speed_up(model, optimizer, plan=full_plan(model, optimizer))
    assert classes_of(model) != classes
    assert handle.is_active
    end(optimizer, handle)
    assert not handle.is_active
    assert (classes_of(model), look_of(model), repr(model)) == (classes, look, text)
    assert len(model._forward_pre_hooks) == (0 if end is detach else hooks)
    handle.undo()


@needs_kernels
def test_collection_of_the_optimizer_ends_the_speed_up():
    model = make()
    classes = classes_of(model)
    optimizer = wrap(model)
    handle = speed_up(model, optimizer, plan=full_plan(model, optimizer))
    train(model, optimizer, 2)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert not handle.is_active
    assert classes_of(model) == classes


@needs_kernels
def test_handle_need_not_be_kept():
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    gc.collect()
    train(model, optimizer, 1)
    assert type(model.stem) is not nn.Conv2d
    assert optimizer.holder.is_active


@needs_kernels
def test_another_one_can_follow():
    model = make()
    optimizer = wrap(model)
    plan = full_plan(model, optimizer)
    speed_up(model, optimizer, plan=plan).undo()
    handle = speed_up(model, optimizer, plan=plan)
    assert handle.plan == plan


@needs_kernels
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_ordinary_models_that_train_the_same(copied):
    model = make()
    classes = classes_of(model)
    optimizer = wrap(model)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    train(model, optimizer, 3)
    other, other_optimizer = copied((model, optimizer))
    assert classes_of(other) == classes
    assert other_optimizer.holder is None
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
    losses = train(model, optimizer, 4, start=3)
    assert train(other, other_optimizer, 4, start=3) == pytest.approx(losses, rel=1e-3)
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, other_optimizer.masks[name])


@needs_kernels
def test_pickle_of_a_model_needs_no_class_of_this_package():
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    assert type(model.block.conv1) is not nn.Conv2d
    assert b"sparseopt" not in pickle.dumps(model.block.conv1)


def test_second_speed_up_is_refused():
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer)
    with pytest.raises(ValueError, match="in use by speed_up already"):
        speed_up(model, optimizer)


@needs_kernels
def test_model_that_another_optimizer_speeds_up_is_refused():
    model = make()
    halves = list(model.parameters())[:9], list(model.parameters())[9:]
    first, second = (
        SparseOptimizer(torch.optim.SGD(half, lr=0.1), model, method="static") for half in halves
    )
    speed_up(model, first, plan={"stem": {"6x3x9x9": "converted"}})
    with pytest.raises(ValueError, match="sped up already"):
        speed_up(model, second)


def test_model_of_another_optimizer_is_refused():
    optimizer = wrap(make())
    model = make()
    with pytest.raises(ValueError, match=r"not the model .* 'stem.weight'"):
        speed_up(model, optimizer)
    assert optimizer.holder is None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (lambda model, optimizer: (optimizer, model), "model="),
        (lambda model, optimizer: (model, optimizer.inner), "optimizer="),
        (lambda model, optimizer: (model, optimizer, ["stem"]), "plan="),
        (lambda model, optimizer: (model, optimizer, {"stem": "live"}), "plan"),
    ],
)
def test_wrong_types_are_refused_by_name(arguments, name):
    model = make()
    optimizer = wrap(model)
    with pytest.raises(TypeError, match=name):
        speed_up(*arguments(model, optimizer))
    assert optimizer.holder is None


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"steam": {"6x3x9x9": "live"}}, "'steam'"),
        ({"stem": {"6,3,9,9": "live"}}, "'6,3,9,9'"),
        ({"stem": {"6x3x9x9": "fast"}}, "'fast'.*'live'"),
        ({"head": {"6x16": "converted"}}, "'converted'.*'dense', 'live'"),
        ({"grouped": {"6x12x5x5": "live"}}, "'live'.*'converted', 'dense'"),
    ],
)
def test_plan_that_does_not_fit_is_refused_by_name(plan, message):
    model = make()
    optimizer = wrap(model)
    with pytest.raises(ValueError, match=message):
        speed_up(model, optimizer, plan=plan)
    assert optimizer.holder is None
    assert type(model.stem) is nn.Conv2d


@needs_kernels
def test_interrupted_speed_up_leaves_nothing_half_done(monkeypatch):
    model = make()
    optimizer = wrap(model)
    plan = full_plan(model, optimizer)
    classes = classes_of(model)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerState, "refresh", interrupt)
    with pytest.raises(KeyboardInterrupt):
        speed_up(model, optimizer, plan=plan)
    assert classes_of(model) == classes
    assert optimizer.holder is None


@needs_kernels
def test_interrupted_measurement_leaves_a_model_that_trains(monkeypatch):
    model = make()
    optimizer = wrap(model)
    classes = classes_of(model)
    speed_up(model, optimizer)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measurement, "_timed_in_turn", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, 1)
    assert classes_of(model) == classes
    train(model, optimizer, 1)


def test_detached_optimizer_is_refused():
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer)
    optimizer.detach()
    assert optimizer.holder is None
    with pytest.raises(RuntimeError, match="detached"):
        speed_up(model, optimizer)


def channels_optimizer(model):
    return SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method=RigLStruct(groups=find_channel_groups(model, images())),
        density=0.5,
        total_steps=100,
        delta_t=5,
    )


def test_speed_up_and_compacted_training_refuse_each_other():
    model = make()
    optimizer = channels_optimizer(model)
    with (
        CompactedTraining(model, optimizer),
        pytest.raises(ValueError, match="in use by CompactedTraining"),
    ):
        speed_up(model, optimizer)
    with speed_up(model, optimizer), pytest.raises(ValueError, match="in use by speed_up"):
        CompactedTraining(model, optimizer)
    with CompactedTraining(model, optimizer):
        train(model, optimizer, 2)
    assert optimizer.holder is None


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
def test_training_stays_dense_without_kernels_and_one_line_says_so(kind, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "why_not", lambda: "there is no compiler")
    model = make(kind)
    optimizer = wrap(model)
    classes = classes_of(model)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        handle = speed_up(model, optimizer)
        losses = train(model, optimizer, 6)
    assert [record.message for record in caplog.records] == [
        "speed_up: training stays dense, without the sparse kernels: there is no compiler"
    ]
    assert "there is no compiler" in handle.report
    assert classes_of(model) == classes
    plain = make(kind)
    assert train(plain, wrap(plain), 6) == losses


def test_report_names_a_method_that_reads_dense_gradients_at_every_step():
    model = make()
    handle = speed_up(model, optimizer := wrap(model, method="snfs"))
    if kernels.available():
        train(model, optimizer, 2)
        assert "'snfs' reads" in handle.report
        assert handle.plan == {}


@needs_kernels
def test_flops_are_those_of_the_plain_model():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 1)
    expected = optimizer.flops(model, images())
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    found = optimizer.flops(model, images())
    assert found.inference_sparse == expected.inference_sparse
    assert loss_of(model).requires_grad


@needs_kernels
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_stays_dense_on_a_gpu_and_one_line_says_so(caplog):
    model = make().cuda()
    optimizer = wrap(model)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        speed_up(model, optimizer)
    assert [record.message for record in caplog.records] == [
        "speed_up: training stays dense: there are sparse kernels for CPUs only"
    ]
    model(images().cuda()).sum().backward()
