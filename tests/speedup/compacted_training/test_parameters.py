"""Parameters without masks, and frozen ones, in training without dropped channels."""

import pytest
import torch

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer
from tests.speedup.compacted_training.sameness import assert_same_training
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.channel_nets import INPUT, ChannelNet, PlainNet, groups_of
from tests.support.nets import loss_of, make
from tests.support.training import train, train_step

STEPS = 18


def parts_of(model):
    """Return matrices, and vectors, which are the normalisations' parameters and all biases."""
    parameters = list(model.parameters())
    return [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() < 2]


def wrapped(inner, model):
    """Return the model and its optimizer; half of the channels of each convolution are live."""
    method = RigLStruct(groups=groups_of(type(model)))
    return model, SparseOptimizer(
        inner, model, method=method, density=0.25, init={}, total_steps=40, delta_t=4,
        alpha=0.6, seed=3,
    )  # fmt: skip


def unmasked(name="SGD", *, kind=ChannelNet, **settings):
    """Return a model and an optimizer; vectors have no masks, and ``settings`` of their own."""
    model = make(kind, dtype=torch.float64)
    matrices, vectors = parts_of(model)
    groups = [{"params": matrices}, {"params": vectors, "density": False, **settings}]
    return wrapped(build(name, groups), model)


def masked():
    model = make(ChannelNet, dtype=torch.float64)
    return wrapped(build("SGD", model.parameters()), model)


def assert_learns_the_same(name, **settings):
    expected = unmasked(name, **settings)
    train(*expected, STEPS)
    model, optimizer = unmasked(name, **settings)
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        train(model, optimizer, STEPS)
    assert any(record.new > 0 for record in optimizer.history)
    assert_same_training(model, optimizer, *expected)
    with torch.no_grad():
        outputs = [loss_of(one.eval(), 1) for one in (model, expected[0])]
    torch.testing.assert_close(*outputs)
    for one in (expected, (model, optimizer)):
        train(one[0].train(), one[1], 4, start=STEPS)
    assert_same_training(model, optimizer, *expected)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_normalisations_without_masks_learn_the_same(name, decay):
    """Normalisations of dropped channels train too: weight decay and momentum move them."""
    assert_learns_the_same(name, weight_decay=decay)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_element_wise_optimizer_learns_the_same_without_masks(name):
    # PlainNet has no normalisation. Before one, the gradient of a bias is only rounding, and Rprop
    # steps by its sign.
    assert_learns_the_same(name, kind=PlainNet)


def test_writes_into_a_parameter_without_a_mask_stay():
    model, optimizer = unmasked(lr=0.0)
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        with torch.no_grad():
            model.bn3.weight.fill_(0.5)
        train(model, optimizer, 2)
        assert torch.equal(model.bn3.weight, torch.full((4,), 0.5, dtype=torch.float64))
    live = optimizer.masks["wide.weight"].flatten(1).any(1)
    assert torch.equal(model.bn3.weight, torch.where(live, 0.5, 1.0).double())


def test_closure_may_save_the_model_inside_a_step():
    expected = unmasked()
    train(*expected, 7)
    model, optimizer = unmasked()
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        for t in range(1, 8):

            def closure(t=t):
                optimizer.zero_grad()
                loss = loss_of(model, t)
                loss.backward()
                if t % 3 == 0:
                    model.state_dict()
                return loss

            assert optimizer.step(closure) is not None
    assert_same_training(model, optimizer, *expected)


def test_parameter_of_another_optimizer_is_refused_and_nothing_changes():
    model = make(ChannelNet, dtype=torch.float64)
    matrices, vectors = parts_of(model)
    _, optimizer = wrapped(build("SGD", matrices), model)
    before = list(model.parameters())
    with pytest.raises(ValueError, match=r"'bn0\.weight'.*not in this optimizer.*density=False"):
        CompactedTraining(model, optimizer, example_inputs=INPUT.double())
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), before, strict=True))
    train(model, optimizer, 3)
    for vector in vectors:
        vector.requires_grad_(False)
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        train(model, optimizer, 3, start=3)
        assert model.bn0.weight.shape == (3,)


def test_refusal_during_training_leaves_the_model_full():
    model = make(ChannelNet, dtype=torch.float64)
    model.bn3.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    _, optimizer = wrapped(build("SGD", trained), model)
    training = CompactedTraining(model, optimizer, example_inputs=INPUT.double())
    model.bn3.requires_grad_(True)
    train(model, optimizer, 3)
    with pytest.raises(ValueError, match=r"'bn3\.weight'.*not in this optimizer"):
        train_step(model, optimizer, 4)
    assert training.is_full
    training.end()
    assert model.bn3.weight.shape == (8,)
    train(model, optimizer, 3, start=4)


def copies(module):
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: value.detach().clone() for name, value in tensors}


def freeze_for_five_steps(model, optimizer):
    """Freeze a convolution over an update, and its normalisation for good."""
    train(model, optimizer, 5)
    model.wide.requires_grad_(False)
    model.bn3.requires_grad_(False)
    frozen = copies(model.wide)
    for t in range(6, 11):
        train_step(model, optimizer, t)
        assert not any(p.requires_grad for p in (*model.wide.parameters(), *model.bn3.parameters()))
    for name, value in copies(model.wide).items():
        assert torch.equal(value, frozen[name]), name
    model.wide.requires_grad_(True)
    train(model, optimizer, 4, start=10)


@pytest.mark.parametrize("pair", [masked, unmasked])
def test_layer_can_be_frozen_and_freed_as_in_the_whole_model(pair):
    expected = pair()
    freeze_for_five_steps(*expected)
    model, optimizer = pair()
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        freeze_for_five_steps(model, optimizer)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("bn3" not in name), name
    assert_same_training(model, optimizer, *expected)
