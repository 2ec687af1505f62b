"""Whole channels: dropped with all that they own, grown where the loss pulls, counts exact."""

import copy
import pickle

import numpy as np
import pytest
import torch

from sparseopt import (
    NoSparseLayerError,
    RigLStruct,
    SparseOptimizer,
    final_masks,
)
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.channel_nets import (
    OWNED,
    ChannelNet,
    MixedNet,
    PlainNet,
    SmallerNet,
    groups_of,
)
from tests.support.channel_runs import (
    HALF,
    HALF_OF,
    SETTINGS,
    STEPS,
    assert_masks,
    oracle_of,
    run_against_oracle,
    values,
    wrapped,
)
from tests.support.looking import assert_dropped_are_fresh, logical
from tests.support.nets import MatrixNet, make
from tests.support.training import loss_of, train, train_step


def live_channels(optimizer):
    """By kind of channel, which are live, as seen in the first weight that makes them."""
    return {
        kind: logical(optimizer.masks[kind]).reshape(owned.channels, -1).any(1)
        for kind, owned in OWNED.items()
    }


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, channels_last, state, device):
    form = {"channels_last": channels_last, "device": device}
    model, optimizer = wrapped(name, state, form=form, **HALF)
    reference = oracle_of(model, HALF_OF)
    run_against_oracle(model, optimizer, reference)
    assert len(optimizer.history) == 14


def test_regrow_never_agrees_with_the_oracle():
    model, optimizer = wrapped("AdamW", regrow="never", **HALF)
    run_against_oracle(model, optimizer, oracle_of(model, HALF_OF, regrow="never"))
    assert all(record.new > 0 for record in optimizer.history[:8])


def test_channels_ever_live_grow_in_every_group():
    """Masks really move: also channels that were dropped at the start get their chance."""
    model, optimizer = wrapped(**HALF)
    reference = oracle_of(model, HALF_OF)
    seen = []
    for _ in range(2):
        for t in range(len(seen) * 20 + 1, len(seen) * 20 + 21):
            updating = reference.is_update(t)
            if updating:
                optimizer.zero_grad()
                loss_of(model, t).backward()
                reference.update(t, values(model), values(model, lambda parameter: parameter.grad))
                optimizer.step()
            else:
                train_step(model, optimizer, t)
        seen.append({kind: int(ever.sum()) for kind, ever in reference.ever.items()})
        assert_masks(optimizer, reference)
    for kind, at_start in HALF_OF.items():
        assert at_start < seen[0][kind] <= seen[1][kind], kind
    explored = [record.explored for record in optimizer.history]
    assert explored == sorted(explored)
    assert explored[0] < explored[-1]


@pytest.mark.parametrize("name", [*sorted(ELEMENTWISE), "Adafactor"])
def test_dropped_channels_stay_dropped_and_counts_exact_with_any_optimizer(name, state):
    """Weight decay and momentum move neither their filters nor their scales and shifts."""
    if state == "live" and name == "Adafactor":
        pytest.skip("its state has a shape, so it can't be of live weights only")
    model, optimizer = wrapped(name, state, **HALF)
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.05

    def check(_):
        assert_dropped_are_fresh(optimizer)
        live = live_channels(optimizer)
        assert {kind: int(channels.sum()) for kind, channels in live.items()} == HALF_OF
        assert all(layer.live == layer.target for layer in optimizer.layers)

    train(model, optimizer, 12, after=check)
    assert {"bn0.weight", "bn0.bias", "wide.bias", "fc1.weight"} <= optimizer.masks.keys()
    assert not {"fc1.bias", "fc2.bias"} & optimizer.masks.keys()
    assert optimizer.masks["fc2.weight"].all()


def test_gradient_that_is_not_finite_moves_nothing():
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 2)
    before = live_channels(optimizer)
    loss_of(model, 3).backward()
    model.fc2.weight.grad[0, 0] = torch.inf
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    assert all((mask == before[kind]).all() for kind, mask in live_channels(optimizer).items())
    assert_dropped_are_fresh(optimizer)


def test_update_without_a_forward_pass_is_skipped_with_a_warning():
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="no training pass before the update at step 3"):
        optimizer.step()
    assert optimizer.history[-1].skipped


def test_group_of_a_grouped_convolution_moves_as_a_whole():
    model, optimizer = wrapped(kind=PlainNet, density=0.25, init={})

    def check(_):
        rows = logical(optimizer.masks["c1.weight"]).reshape(4, 2, -1)
        assert (rows.any(2).sum(1) % 2 == 0).all()
        assert rows.any(2).any(1).sum() == 2
        through = logical(optimizer.masks["c2.weight"]).reshape(4, -1)
        np.testing.assert_array_equal(through.all(1), rows.any(2).any(1))
        columns = logical(optimizer.masks["c3.weight"]).reshape(6, 4, 2, -1).any((0, 2, 3))
        np.testing.assert_array_equal(columns, rows.any(2).any(1))

    train(model, optimizer, STEPS, after=check)
    assert max(record.new for record in optimizer.history) > 0


def test_channels_that_a_normalisation_mixes_stay_and_a_log_line_says_so(caplog):
    caplog.set_level("INFO", logger="sparseopt")
    _, optimizer = wrapped(kind=MixedNet, density=0.5, init="uniform")
    assert optimizer.masks["c1.weight"].all()
    assert "norm.weight" not in optimizer.masks
    assert not optimizer.masks["c2.weight"].all()
    assert "c1.weight: norm normalises over groups of them" in caplog.text


def test_resumed_run_is_the_uninterrupted_one():
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, 17)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, STEPS - 17, start=17)
    resumed, its_optimizer = wrapped("AdamW", **{**HALF, "seed": 8})
    resumed.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(resumed, its_optimizer, STEPS - 17, start=17)
    assert its_optimizer.history == optimizer.history
    for mine, theirs in zip(
        model.state_dict().values(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_checkpoint_saved_between_two_parts_of_an_update_step_changes_nothing():
    runs = []
    for saves in (False, True):
        model, optimizer = wrapped(**HALF)
        train(model, optimizer, 2)
        for part in range(2):
            loss_of(model, 2).backward()
            if saves and part == 0:
                optimizer.state_dict()
        optimizer.step()
        assert optimizer.history[-1].new > 0
        runs.append(model)
    ours, theirs = (model.state_dict() for model in runs)
    assert any("running" in name for name in ours)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_checkpoint_loaded_in_the_middle_of_an_update_step_resumes():
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, start=2)
    clean = optimizer.history[0]
    assert clean.new > 0
    again, its_optimizer = wrapped("AdamW", **HALF)
    train(again, its_optimizer, 2)
    loss_of(again, 3).backward()
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(again, its_optimizer, 3, start=2)
    assert its_optimizer.history[0] == clean
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_whole_model_is_pickled_and_the_copy_is_left_alone():
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 2)
    restored = pickle.loads(pickle.dumps(model))
    averaged = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    for other in (restored, averaged):
        loss_of(other, 3).backward()
        assert all(
            torch.equal(value, before[name])
            for name, value in model.state_dict().items()
            if name in optimizer.masks
        )
        for name, weight in other.named_parameters():
            if name in optimizer.masks:
                assert not weight[~optimizer.masks[name]].any(), name


def test_copy_trains_on_as_the_original_does():
    model, optimizer = wrapped("SGD", **HALF)
    train(model, optimizer, 7)
    other_model, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 20, start=7)
    train(other_model, other, 20, start=7)
    assert other.history == optimizer.history
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("first", ["model", "optimizer"])
@pytest.mark.parametrize("steps", [0, 7])
def test_unpickled_run_is_the_uninterrupted_one(first, steps):
    """Forward passes of the unpickled model are prepared, so its masks go on to move."""
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, steps)
    pair = (model, optimizer) if first == "model" else (optimizer, model)
    pair = pickle.loads(pickle.dumps(pair))
    other_model, other = pair if first == "model" else reversed(pair)
    assert other.model is other_model
    train(model, optimizer, 20, start=steps)
    train(other_model, other, 20, start=steps)
    assert other.history == optimizer.history
    assert any(record.new > 0 for record in other.history if record.step > steps)
    assert all(torch.equal(mask, other.masks[name]) for name, mask in optimizer.masks.items())
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_masks_of_a_run_begin_another():
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, STEPS)
    ticket = final_masks(optimizer)
    _, again = wrapped(mask=ticket)
    assert again.masks.keys() == ticket.keys()
    assert all(torch.equal(mask, ticket[name]) for name, mask in again.masks.items())


def test_masks_of_single_weights_are_refused():
    _, optimizer = wrapped(**HALF)
    masks = final_masks(optimizer)
    masks["c1.weight"][0, 0, 0, 0] ^= True
    with pytest.raises(ValueError, match=r"c1\.weight.*entire channels"):
        wrapped(mask=masks)
    masks["c1.weight"][:] = False
    with pytest.raises(ValueError, match=r"c1\.weight.*no live channel"):
        wrapped(mask=masks)
    with pytest.raises(ValueError, match=r"c1.*shape"):
        wrapped(mask={"c1": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"two masks for layer 'c1\.weight'"):
        wrapped(mask={**masks, "c1": ~masks["c1.weight"]})
    with pytest.raises(ValueError, match="nonzero"):
        wrapped(mask="nonzero")


def test_magnitude_keeps_the_channels_that_add_most():
    model = make(ChannelNet)
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([1.0, 3.0, 2.0, 0.1, 5.0, 4.0]))
        model.c2.weight.fill_(1.0)
        model.c2.weight[:, 4] = 0.1
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters()),
        model,
        method=RigLStruct(groups=groups_of(ChannelNet)),
        mask="magnitude",
        **{**SETTINGS, **HALF},
    )
    assert live_channels(optimizer)["c1.weight"].tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"method": "rigl-struct"}, NoSparseLayerError, "example_inputs"),
        ({"density": 0.001}, ValueError, r"density=0\.001.* too low"),
        ({"regrow": "zero"}, ValueError, "zero"),
        ({"model": None}, TypeError, "model"),
        ({"kind": MatrixNet}, NoSparseLayerError, "does not train"),
        ({"kind": SmallerNet}, ValueError, "another model"),
    ],
)
def test_wrong_arguments_raise_an_error(settings, error, words):
    model = make(settings.pop("kind", ChannelNet))

    def run(regrow="keep", **changes):
        method = RigLStruct(groups=groups_of(ChannelNet), kinds=("channel",), regrow=regrow)
        given = {"model": model, "method": method, **SETTINGS, **changes}
        SparseOptimizer(torch.optim.SGD(model.parameters()), **given)

    with pytest.raises(error, match=words):
        run(**settings)


def test_layers_that_come_later_are_refused_and_nothing_is_added():
    model = make(ChannelNet)
    head = list(model.fc2.parameters())
    trunk = [p for p in model.parameters() if all(p is not other for other in head)]
    optimizer = SparseOptimizer(
        build("SGD", trunk), model, method=RigLStruct(groups=groups_of(ChannelNet)), **SETTINGS
    )
    with pytest.raises(ValueError, match=r"can't take 'fc2\.weight'"):
        optimizer.add_param_group({"params": head})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": head, "density": False})
    train(model, optimizer, 7)
