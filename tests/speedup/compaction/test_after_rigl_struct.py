"""A model of `rigl-struct` can be compacted at any step, and the result is an ordinary model."""

import copy
import io
from functools import cache

import pytest
import torch

from sparseopt import (
    CompactedTraining,
    RigLStruct,
    SparseOptimizer,
    compact,
    condense,
    find_channel_groups,
)
from tests.support.catalogue import build
from tests.support.channel_nets import INPUT, ChannelNet
from tests.support.nets import batch, loss_of, make
from tests.support.training import train

DELTA_T = 4


@cache
def groups():
    return find_channel_groups(make(ChannelNet), INPUT)


def trained(steps):
    model = make(ChannelNet)
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method=RigLStruct(groups=groups()),
        density=0.25, init={}, total_steps=40, delta_t=DELTA_T, seed=3,
    )  # fmt: skip
    train(model, optimizer, steps)
    return model, optimizer


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


#: Steps after which the next one is an ordinary step, and after which it is an update.
STEPS = pytest.mark.parametrize("steps", [DELTA_T + 1, 2 * DELTA_T - 1])


@STEPS
def test_model_is_compacted_before_any_kind_of_step(steps):
    model, optimizer = trained(steps)
    assert optimizer.is_update_step == ((steps + 1) % DELTA_T == 0)
    before = copy.deepcopy(model.state_dict())
    images, _ = batch(90)
    compacted = compact(model, optimizer, example_inputs=images)
    smaller = compacted.model
    assert smaller.c1.out_channels == 3
    assert compacted.report.left_out == ()
    for training in (True, False):
        with torch.no_grad():
            expected, found = model.train(training)(images), smaller.train(training)(images)
        torch.testing.assert_close(found, expected)
    for name, value in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name]), name
    assert len(find_channel_groups(model, images)) == len(groups())


@STEPS
@pytest.mark.parametrize("training", [True, False])
def test_smaller_model_is_exported(steps, training):
    model, optimizer = trained(steps)
    images, _ = batch(90)
    smaller = compact(model, optimizer, example_inputs=images).model.train(training)
    program = torch.export.export(copy.deepcopy(smaller), (images,))
    torch.testing.assert_close(program.module()(images), smaller(images))


def condensed(model, optimizer, images):
    return condense(model, optimizer, example_inputs=images, scripted=False, compiled=False).model


def smaller_model(model, optimizer, images):
    return compact(model, optimizer, example_inputs=images).model


@STEPS
@pytest.mark.parametrize("make_copy", [smaller_model, condensed])
def test_copy_is_saved_without_a_trace(steps, make_copy):
    model, optimizer = trained(steps)
    images, _ = batch(90)
    copied = make_copy(model, optimizer, images).eval()
    content = saved(copied)
    if make_copy is smaller_model:
        assert b"sparseopt" not in content
    loaded = torch.load(io.BytesIO(content), weights_only=False)
    torch.testing.assert_close(loaded(images), copied(images))


def test_training_the_smaller_model_leaves_the_larger_one_alone():
    model, optimizer = trained(2 * DELTA_T - 1)
    smaller = compact(model, optimizer, example_inputs=batch(90)[0]).model
    before = copy.deepcopy(model.state_dict())
    plain = build("SGD", smaller.parameters())
    train(smaller, plain, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    alone, its_optimizer = trained(2 * DELTA_T - 1)
    for net, sparse in ((model, optimizer), (alone, its_optimizer)):
        train(net, sparse, 1, start=2 * DELTA_T - 1)
    assert optimizer.history == its_optimizer.history
    assert optimizer.history[-1].new > 0


def test_model_compacted_during_compacted_training_is_independent_of_it():
    model, optimizer = trained(DELTA_T)
    with CompactedTraining(model, optimizer) as training:
        train(model, optimizer, 1, start=DELTA_T)
        smaller = compact(model, optimizer, example_inputs=batch(90)[0]).model
        train(model, optimizer, 1, start=DELTA_T + 1)
        loss_of(model, 7)
        assert not training.is_full
        smaller.state_dict()
        smaller.load_state_dict(copy.deepcopy(smaller.state_dict()))
        assert not training.is_full
        content = saved(smaller)
    assert b"sparseopt" not in content


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_masks_of_the_smaller_model_begin_another_training(method):
    """This includes methods with single weights only and without masks for normalisations."""
    model, optimizer = trained(DELTA_T + 1)
    compacted = compact(model, optimizer, example_inputs=batch(90)[0])
    smaller = compacted.model
    again = SparseOptimizer(
        build("SGD", smaller.parameters()), smaller, method=method, density=0.5,
        mask=compacted.masks, total_steps=40, delta_t=10,
    )  # fmt: skip
    train(smaller, again, 3)
    for name, mask in compacted.masks.items():
        assert torch.equal(again.masks[name], mask)
