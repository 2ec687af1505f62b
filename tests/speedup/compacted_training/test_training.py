"""Training without dropped channels equals training with them, and state dicts are full."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from sparseopt import (
    CompactedTraining,
    CompactionError,
    RigLStruct,
    SparseOptimizer,
    compact,
    find_channel_groups,
)
from tests.speedup.compacted_training.sameness import assert_same_training
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.channel_nets import INPUT, ChannelNet, PlainNet, groups_of
from tests.support.nets import loss_of, make
from tests.support.training import train, train_step

STEPS = 40
#: Half of the channels of each convolution.
SETTINGS = {"density": 0.25, "init": {}, "total_steps": STEPS, "delta_t": 4, "alpha": 0.6}


def wrapped(name="SGD", *, kind=ChannelNet, form=None, groups=None, **changes):
    # In double precision, so that no near tie between channels is settled by rounding.
    model = make(kind, dtype=torch.float64, **(form or {}))
    method = RigLStruct(groups=groups or groups_of(kind))
    inner = build(name, model.parameters())
    return model, SparseOptimizer(
        inner, model, **{"method": method, "seed": 3, **SETTINGS, **changes}
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [ChannelNet, PlainNet])
def test_compacted_training_equals_training_of_the_full_model(kind, channels_last, device):
    """With schedules, clipping and evaluation in between, over every update of a run."""
    form = {"channels_last": channels_last, "device": device}
    outputs = {}
    runs = {}
    for compacted in (False, True):
        model, optimizer = wrapped("AdamW", kind=kind, form=form, seed=0)
        scheduler = OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS)
        outputs[compacted] = []

        def loop(model=model, optimizer=optimizer, scheduler=scheduler, seen=outputs[compacted]):
            for t in range(1, STEPS + 1):
                optimizer.zero_grad()
                loss_of(model.train(), t).backward()
                clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                with torch.no_grad():
                    seen.append(loss_of(model.eval(), t))

        if compacted:
            with CompactedTraining(model, optimizer):
                loop()
        else:
            loop()
        runs[compacted] = model, optimizer
    assert sum(record.new > 0 for record in runs[True][1].history) >= 3
    torch.testing.assert_close(torch.stack(outputs[True]), torch.stack(outputs[False]))
    assert_same_training(*runs[True], *runs[False])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_element_wise_optimizer_learns_the_same(name):
    # Without normalisation, before which a bias has no gradient but rounding: Rprop takes its sign.
    expected = wrapped(name, kind=PlainNet)
    train(*expected, 14)
    model, optimizer = wrapped(name, kind=PlainNet)
    with CompactedTraining(model, optimizer):
        train(model, optimizer, 14)
    assert_same_training(model, optimizer, *expected)
    train(*expected, 6, start=14)
    train(model, optimizer, 6, start=14)
    assert_same_training(model, optimizer, *expected)


def test_model_is_small_but_for_update_steps():
    model, optimizer = wrapped()
    modules = list(model.modules())
    widths = []
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        for t in range(1, STEPS + 1):
            widths.append((optimizer.is_update_step, model.wide.weight.shape[0]))
            assert model.wide.out_channels == model.bn3.num_features == widths[-1][1]
            assert model.depth.groups == widths[-1][1]
            train_step(model, optimizer, t)
    assert set(widths) == {(True, 8), (False, 4)}
    assert list(model.modules()) == modules
    assert model.depth.groups == model.wide.weight.shape[0] == 8


def test_first_step_records_the_shapes_of_inputs_that_are_not_given():
    model, optimizer = wrapped()
    with CompactedTraining(model, optimizer) as training:
        assert training.is_full
        train_step(model, optimizer, 1)
        assert not training.is_full
        assert model.c1.weight.shape == (3, 3, 3, 3)


def test_checkpoint_has_the_full_model_and_resumes_anywhere():
    expected = wrapped("AdamW")
    train(*expected, STEPS)
    model, optimizer = wrapped("AdamW")
    with CompactedTraining(model, optimizer) as training:
        train(model, optimizer, 14)
        assert not training.is_full
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        train(model, optimizer, STEPS - 14, start=14)
    assert_same_training(model, optimizer, *expected)
    other, its_optimizer = wrapped("AdamW", seed=8)
    other.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(other, its_optimizer, STEPS - 14, start=14)
    assert_same_training(other, its_optimizer, *expected)


def test_checkpoint_can_be_loaded_on_the_way():
    expected = wrapped("AdamW")
    train(*expected, 14)
    saved = copy.deepcopy([one.state_dict() for one in expected])
    train(*expected, STEPS - 14, start=14)
    model, optimizer = wrapped("AdamW", seed=8)
    with CompactedTraining(model, optimizer):
        train(model, optimizer, 6)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        train(model, optimizer, STEPS - 14, start=14)
    assert_same_training(model, optimizer, *expected)


def test_gradients_survive_that_the_full_model_is_restored():
    runs = []
    for compacted in (False, True):
        model, optimizer = wrapped()
        with CompactedTraining(model, optimizer) as training:
            if not compacted:
                training.end()
            train(model, optimizer, 5)
            optimizer.zero_grad()
            loss_of(model, 6).backward()
            training.restore()
            loss_of(model, 7).backward()
            optimizer.step()
        runs.append((model, optimizer))
    assert_same_training(*runs[1], *runs[0])


def test_restoring_the_full_model_before_backward_raises_an_error():
    model, optimizer = wrapped()
    with CompactedTraining(model, optimizer) as training:
        train(model, optimizer, 5)
        optimizer.zero_grad()
        loss = loss_of(model, 6)
        training.restore()
        loss.backward()
        with pytest.raises(RuntimeError, match="between a forward pass and its backward"):
            optimizer.step()


def test_figures_masks_and_copies_describe_the_full_model():
    expected_model, expected = wrapped()
    train(expected_model, expected, 4)
    model, optimizer = wrapped()
    with CompactedTraining(model, optimizer) as training:
        train(model, optimizer, 4)
        assert not training.is_full
        assert optimizer.masks.keys() == expected.masks.keys()
        assert optimizer.density == expected.density
        assert not training.is_full
        assert optimizer.flops() == expected.flops()
        train_step(model, optimizer, 5)
        assert not training.is_full
        found, smaller = (
            {
                name: p.shape
                for name, p in compact(
                    *pair, example_inputs=INPUT.double()
                ).model.named_parameters()
            }
            for pair in ((model, optimizer), (expected_model, expected))
        )
        assert found == smaller
        train_step(model, optimizer, 6)
        assert copy.deepcopy(model).c1.weight.shape == (3, 3, 3, 3)
        training.restore()
        other_model, other = copy.deepcopy((model, optimizer))
        train(model, optimizer, 3, start=6)
    train(other_model, other, 3, start=6)
    train(expected_model, expected, 5, start=4)
    assert_same_training(model, optimizer, expected_model, expected)
    assert_same_training(other_model, other, expected_model, expected)


def test_horizon_that_makes_the_next_step_an_update_is_heeded():
    runs = []
    for compacted in (False, True):
        model, optimizer = wrapped(total_steps=8)
        with CompactedTraining(model, optimizer) as training:
            if not compacted:
                training.end()
            train(model, optimizer, 7)
            optimizer.set_horizon(STEPS)
            train(model, optimizer, 3, start=7)
        runs.append((model, optimizer))
    assert [record.step for record in runs[1][1].history] == [4, 8]
    assert_same_training(*runs[1], *runs[0])


def test_compiled_model_and_a_scaler_train_on():
    expected = wrapped()
    train(*expected, 10)
    model, optimizer = wrapped()
    compiled = torch.compile(model, backend="eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with CompactedTraining(compiled, optimizer):
        for t in range(1, 11):
            optimizer.zero_grad()
            scaler.scale(loss_of(compiled, t)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_same_training(model, optimizer, *expected)


class Written(ChannelNet):
    """Its code contains the number of channels."""

    def forward(self, x):
        x = self.bn3(self.wide(self.bn0(self.stem(x))))
        x = self.bn4(self.depth(x)).relu()
        return self.fc2(self.fc1(x.reshape(-1, 72)))


def test_number_of_channels_that_is_written_out_is_found_and_all_channels_stay():
    model, optimizer = wrapped(kind=Written)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompactionError, match="shape"):
        CompactedTraining(model, optimizer, example_inputs=INPUT.double())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    train(model, optimizer, 5)


def test_wrong_arguments_raise_an_error():
    model, optimizer = wrapped(method="rigl")
    with pytest.raises(TypeError, match=r"method='rigl'.*rigl-struct"):
        CompactedTraining(model, optimizer)
    model, optimizer = wrapped(state="masked")
    with pytest.raises(ValueError, match="live state"):
        CompactedTraining(model, optimizer)
    model, optimizer = wrapped()
    with pytest.raises(ValueError, match="not the model"):
        CompactedTraining(copy.deepcopy(model), optimizer)
    with (
        CompactedTraining(model, optimizer, example_inputs=INPUT.double()),
        pytest.raises(ValueError, match="already"),
    ):
        CompactedTraining(model, optimizer)


def test_frozen_layer_and_one_that_is_tied_stay_what_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.once = nn.Conv2d(6, 6, 3, padding=1)
            self.twice = nn.Conv2d(6, 6, 3, padding=1)
            self.twice.weight = self.once.weight
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            x = self.twice(self.once(x).relu()).relu()
            return self.head(x.mean((2, 3)))

    def tied():
        model = make(Tied, dtype=torch.float64)
        model.norm.bias.requires_grad_(False)
        inner = build("SGD", [p for p in model.parameters() if p.requires_grad])
        groups = find_channel_groups(model, INPUT.double())
        return model, SparseOptimizer(
            inner, model, method=RigLStruct(groups=groups), seed=3, **SETTINGS
        )

    expected = tied()
    train(*expected, 10)
    model, optimizer = tied()
    with CompactedTraining(model, optimizer):
        train(model, optimizer, 10)
        assert model.twice.weight is model.once.weight
        assert model.once.weight.shape[0] == 3
    assert model.twice.weight is model.once.weight
    assert_same_training(model, optimizer, *expected)
