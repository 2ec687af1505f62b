"""Masks that the user sets in the middle of training."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sparseopt import NM, Pruning
from sparseopt.distributed.dtensor import full_tensor, is_sharded
from tests.support.ranks import needs_gloo, two_ranks
from tests.support.wrapping import wrap


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def train(optimizer, model, steps, seed=0):
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()


def other_mask(optimizer, name="0.weight"):
    """A mask with as many live weights, a quarter of them elsewhere."""
    mask = optimizer.masks[name].clone().reshape(-1)
    live, dropped = mask.nonzero().reshape(-1), (~mask).nonzero().reshape(-1)
    count = len(live) // 4
    mask[live[:count]] = False
    mask[dropped[-count:]] = True
    return mask.view_as(optimizer.masks[name])


def half(mask):
    """The first half of the weights."""
    first = torch.arange(mask.numel()) < mask.numel() // 2
    return first.view(mask.shape)


@pytest.mark.parametrize("state", ["live", "masked"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_set_masks_acts_as_a_plain_optimizer_whose_state_is_cleared(name, state):
    model = net()
    optimizer = wrap(model, name, method="static", state=state)
    train(optimizer, model, 3)
    byhand = copy.deepcopy(model)
    plain = type(optimizer.inner)(byhand.parameters(), **optimizer.inner.defaults)
    plain.load_state_dict(copy.deepcopy(optimizer.dense_state_dict()))
    before = optimizer.masks
    wanted = {"0.weight": other_mask(optimizer)}
    optimizer.set_masks(wanted)
    masks = {**before, **wanted}
    stays = before["0.weight"] & wanted["0.weight"]
    byhand[0].weight.data[~stays] = 0
    for value in plain.state[byhand[0].weight].values():
        if torch.is_tensor(value) and value.shape == stays.shape:
            value[~stays] = 0

    def step():
        plain.zero_grad()
        byhand(x).square().mean().backward()
        for key, mask in masks.items():
            byhand.get_parameter(key).grad[~mask] = 0
        plain.step()
        for key, mask in masks.items():
            byhand.get_parameter(key).data[~mask] = 0

    for number in range(4):
        torch.manual_seed(7000 + number)
        x = torch.randn(8, 12)
        step()
    train(optimizer, model, 4, seed=7)
    for mine, its in zip(model.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_set_masks_is_in_the_history_and_masks_move_on_from_there():
    model = net()
    optimizer = wrap(model, method="rigl", delta_t=4, init={})
    train(optimizer, model, 2)
    mask = torch.zeros(16, 12, dtype=torch.bool)
    mask[:, :6] = True
    optimizer.set_masks({"0": mask})
    (record,) = optimizer.history
    assert (record.step, record.skipped) == (2, False)
    assert record.grown - record.dropped == 96 - 38  # a fifth of 192 was live
    assert optimizer.layers[0].live == 96
    train(optimizer, model, 4)
    assert [record.step for record in optimizer.history] == [2, 4]
    assert optimizer.layers[0].live == 96
    assert not torch.equal(optimizer.masks["0.weight"], mask)
    assert not model[0].weight[~optimizer.masks["0.weight"]].any()


def test_set_masks_and_a_checkpoint_after_it_go_on_alike():
    model = net()
    optimizer = wrap(model, "Adam")
    train(optimizer, model, 3)
    optimizer.set_masks({"0.weight": other_mask(optimizer)})
    twin = net()
    twin.load_state_dict(model.state_dict())
    other = wrap(twin, "Adam", mask="magnitude")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, stepped in ((model, optimizer), (twin, other)):
        train(stepped, one, 6, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    assert optimizer.history == other.history


def test_set_masks_below_the_curve_of_pruning_lowers_where_it_ends():
    model = net()
    optimizer = wrap(model, method="pruning", density=0.5, init={})
    mask = torch.zeros(16, 12, dtype=torch.bool)
    mask[:4] = True
    optimizer.set_masks({"0.weight": mask})
    assert optimizer.layers[0].target == 48
    train(optimizer, model, 40)
    assert sum(layer.live for layer in optimizer.layers) == 48 + 32


def uneven(**changes):
    """Two layers of 1024 weights that exchange live weights by magnitude, and a training step.

    The second layer's weights are tiny and have no gradient, so that it is pruned first.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[1].weight.mul_(1e-4)
    settings = {"density": 0.25, "init": {}, "total_steps": 8, "delta_t": 2, **changes}
    optimizer = wrap(model, **settings)

    def go(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (model(torch.randn(4, 32)).sum() * 1e-6).backward()
            optimizer.step()

    return optimizer, go


def lives(optimizer):
    return [layer.live for layer in optimizer.layers]


def first_live(live):
    mask = torch.arange(1024) < live
    return mask.view(32, 32)


def test_setting_the_present_masks_once_pruning_is_over_loses_nothing():
    optimizer, go = uneven(method="pruning")
    go(6)
    assert lives(optimizer) == [511, 1]
    optimizer.set_masks(optimizer.masks)
    go(2)
    assert lives(optimizer) == [511, 1]


@pytest.mark.parametrize("method", ["pruning", "granet"])
def test_setting_the_present_masks_in_mid_training_loses_nothing(method):
    optimizer, go = uneven(method=method, total_steps=20)
    optimizer.set_masks(optimizer.masks)
    for _ in range(6):
        go(2)
        optimizer.set_masks(optimizer.masks)
    go(8)
    assert sum(lives(optimizer)) == 512


def test_weights_that_are_set_live_once_pruning_is_over_stay():
    optimizer, go = uneven(method="pruning")
    go(6)
    optimizer.set_masks({"1": first_live(200)})
    go(2)
    assert lives(optimizer) == [511, 200]
    assert sum(layer.target for layer in optimizer.layers) == 711


def test_weights_that_are_set_live_while_pruning_goes_on_are_pruned_to_the_same_number():
    optimizer, go = uneven(method="pruning", total_steps=20)
    go(10)
    assert optimizer.layers[1].live < optimizer.layers[1].target
    assert sum(lives(optimizer)) > 512
    optimizer.set_masks({"1": first_live(optimizer.layers[1].live + 1)})
    go(10)
    assert sum(lives(optimizer)) == 512


def test_layer_that_pruning_leaves_full_is_not_dense_for_ever_after_set_masks():
    optimizer, go = uneven(method="pruning", density=0.75)
    go(6)
    assert lives(optimizer) == [1024, 512]
    optimizer.set_masks({"1": first_live(300)})
    assert not optimizer.layers[0].is_dense
    go(2)
    assert lives(optimizer) == [1024, 300]


@pytest.mark.parametrize("state", ["live", "masked"])
def test_gradients_that_an_update_is_to_read_are_left(state):
    model = net()
    optimizer = wrap(model, method="rigl", delta_t=2, init={}, state=state)
    train(optimizer, model, 1)
    optimizer.zero_grad()
    model(torch.randn(8, 12)).square().mean().backward()
    gradient = model[0].weight.grad.clone()
    before = optimizer.masks["0.weight"].clone()
    optimizer.set_masks({"2": half(torch.ones(4, 16))})
    assert torch.equal(model[0].weight.grad, gradient)
    optimizer.step()
    after = optimizer.masks["0.weight"]
    grown = after & ~before
    assert grown.sum() > 5
    # RigL's definition: those with the largest gradients grow.
    assert gradient[grown].abs().min() >= gradient[~after].abs().max()


def test_layer_that_is_dense_stays_dense():
    model = net()
    optimizer = wrap(model, "Adam", init={"0": 1.0})
    train(optimizer, model, 1)
    keys = {index: set(entry) for index, entry in optimizer.state_dict()["state"].items()}
    optimizer.set_masks({"0": torch.ones(16, 12).bool()})
    with pytest.raises(ValueError, match="stays dense.*init="):
        optimizer.set_masks({"2": half(torch.ones(4, 16)), "0": half(torch.ones(16, 12))})
    assert optimizer.layers[1].live != 32
    optimizer.set_masks({"2": half(torch.ones(4, 16))})
    after = {index: set(entry) for index, entry in optimizer.state_dict()["state"].items()}
    assert after == keys


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.filterwarnings("ignore:the checkpoint's density is used")
@pytest.mark.parametrize("method", ["pruning", "rigl"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_checkpoint_brings_back_what_set_masks_dropped_before_training(method, rounds):
    """Trainers restore the model, make the optimizer, and then restore the optimizer."""
    model = net()
    optimizer = wrap(model, "Adam", method=method)
    train(optimizer, model, 8)
    fresh_model = net()
    fresh_model.load_state_dict(model.state_dict())
    fresh = wrap(fresh_model, "Adam", method=method, seed=9)
    for number in range(rounds):
        mask = torch.zeros(16, 12, dtype=torch.bool)
        mask[number::3] = True
        fresh.set_masks({"0": mask})
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, its in zip(fresh_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.filterwarnings("ignore:the checkpoint's density is used")
def test_weights_that_were_loaded_before_set_masks_are_what_a_checkpoint_brings_back():
    model = net()
    optimizer = wrap(model, "Adam")
    train(optimizer, model, 8)
    fresh_model = net()
    fresh = wrap(fresh_model, "Adam", seed=9)
    fresh_model.load_state_dict(model.state_dict())
    fresh.set_masks({"0": half(torch.ones(16, 12))})
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, its in zip(fresh_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_measured_cost_counts_each_mask_for_as_long_as_it_was_there():
    model = net()
    optimizer = wrap(model, method="static", density=0.25, init={})
    x = torch.randn(1, 12)
    train(optimizer, model, 10)
    optimizer.set_masks({name: half(mask) for name, mask in optimizer.masks.items()})
    train(optimizer, model, 10)
    report = optimizer.flops(model, x)
    biases = 20
    dense = 2 * (192 + 64) + biases
    mean = 2 * (192 + 64) * (0.25 + 0.5) / 2 + biases
    assert report.train_measured == pytest.approx(3 * mean)
    assert report.train_dense == pytest.approx(3 * dense)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"1": torch.ones(16, 12).bool()}, ValueError, "'1' is not known"),
        ({"0": torch.ones(16, 12)}, TypeError, "must be a bool tensor"),
        ({"0": torch.ones(12, 16).bool()}, ValueError, "has shape"),
        ({"0": torch.zeros(16, 12).bool()}, ValueError, "no live weight"),
        ({"0": torch.ones(16, 12).bool(), "2": torch.zeros(4, 16).bool()}, ValueError, "no live"),
        ({"0": torch.ones(16, 12).bool()}, ValueError, "at least one dropped weight, or .*init="),
        (
            {"0": half(torch.ones(16, 12)), "0.weight": half(torch.ones(16, 12))},
            ValueError,
            "two masks for layer '0.weight'",
        ),
    ],
)
def test_wrong_masks_change_nothing(masks, error, message):
    model = net()
    optimizer = wrap(model)
    before = optimizer.masks
    with pytest.raises(error, match=message):
        optimizer.set_masks(masks)
    assert all(torch.equal(before[name], mask) for name, mask in optimizer.masks.items())
    assert optimizer.history == []


def test_masks_without_the_methods_structure_are_refused():
    model = net()
    optimizer = wrap(model, method=NM(2, 4), density=0.5)
    mask = torch.zeros(16, 12, dtype=torch.bool)
    mask[:, :6] = True
    with pytest.raises(ValueError, match="the method's masks have a structure"):
        optimizer.set_masks({"0": mask})


def masks_set_on_ranks():
    """Each rank passes different masks."""
    rank = dist.get_rank()
    optimizer = wrap(net(), method="static")
    mask = torch.zeros(16, 12, dtype=torch.bool)
    mask[rank :: rank + 2] = True
    optimizer.set_masks({"0.weight": mask})
    return optimizer.masks


@needs_gloo
def test_set_masks_takes_rank_zeros_masks_on_all_ranks():
    first, second = two_ranks().run(masks_set_on_ranks)
    wanted = torch.zeros(16, 12, dtype=torch.bool)
    wanted[0::2] = True
    assert torch.equal(first["0.weight"], wanted)
    assert torch.equal(second["0.weight"], wanted)


def masks_in_another_order():
    """Both ranks have the same masks, of one shape, but not in the same order."""
    torch.manual_seed(0)
    optimizer = wrap(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), method="static")
    rows = torch.arange(64).view(8, 8)
    masks = {"0": rows < 24, "1": rows >= 48}
    if dist.get_rank() == 1:
        masks = dict(reversed(masks.items()))
    optimizer.set_masks(masks)
    return {name: mask.clone() for name, mask in optimizer.masks.items()}


@needs_gloo
def test_ranks_may_order_masks_otherwise():
    rows = torch.arange(64).view(8, 8)
    for masks in two_ranks().run(masks_in_another_order):
        assert torch.equal(masks["0.weight"], rows < 24)
        assert torch.equal(masks["1.weight"], rows >= 48)


def masks_of_rank_zero_only(theirs):
    optimizer = wrap(net(), method="static")
    mask = half(torch.ones(16, 12))
    optimizer.set_masks({"0": mask} if dist.get_rank() == 0 else theirs)
    return {name: mask.clone() for name, mask in optimizer.masks.items()}


@needs_gloo
@pytest.mark.parametrize(
    "theirs", [{}, None, {"nothing": None}, {"0": torch.zeros(3)}, {"2": torch.ones(4, 16).bool()}]
)
def test_masks_of_other_ranks_than_the_first_are_not_read(theirs):
    first, second = two_ranks().run(masks_of_rank_zero_only, theirs)
    assert torch.equal(first["0.weight"], half(torch.ones(16, 12)))
    for name, mask in first.items():
        assert torch.equal(second[name], mask)


def refused_on_ranks(wrong):
    optimizer = wrap(net(), method="static")
    before = optimizer.masks
    right = {"0": half(torch.ones(16, 12))}
    try:
        optimizer.set_masks(wrong if dist.get_rank() == 0 else right)
    except Exception as error:
        same = all(torch.equal(before[name], mask) for name, mask in optimizer.masks.items())
        return type(error).__name__, str(error), same
    return "nothing", "", False


@needs_gloo
@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"0": torch.ones(16, 12)}, "TypeError", "must be a bool tensor"),
        ({"nothing": torch.ones(2, 2).bool()}, "ValueError", "is not known"),
        ({"0": torch.zeros(16, 12).bool()}, "ValueError", "no live weight"),
    ],
)
def test_error_on_the_first_rank_is_raised_on_all(wrong, kind, message):
    for raised, words, unchanged in two_ranks().run(refused_on_ranks, wrong):
        assert raised == kind
        assert message in words
        assert unchanged


def sharded_net():
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def sharded_masks_set():
    """Masks of a sharded model, given to itself and to another one, at construction and later."""
    first = wrap(sharded_net(), method="static", seed=1)
    masks = first.masks
    assert all(is_sharded(mask) for mask in masks.values())
    first.set_masks(masks)
    ordered = masks if dist.get_rank() == 0 else dict(reversed(masks.items()))
    later = wrap(sharded_net(), method="static", seed=2)
    later.set_masks(ordered)
    begun = wrap(sharded_net(), method="static", mask=dict(masks), seed=2)
    every = (masks, first.masks, later.masks, begun.masks)
    return [{name: full_tensor(mask) for name, mask in one.items()} for one in every]


@needs_gloo
def test_sharded_masks_can_be_set():
    for wanted, *others in two_ranks().run(sharded_masks_set):
        for masks in others:
            for name, mask in wanted.items():
                assert torch.equal(masks[name], mask)


def sharded_masks_on_one_rank():
    optimizer = wrap(sharded_net(), method="static")
    masks = optimizer.masks
    try:
        optimizer.set_masks(masks if dist.get_rank() == 0 else {})
    except ValueError as error:
        return str(error)
    return ""


@needs_gloo
def test_sharded_masks_of_one_rank_are_refused_on_all():
    for message in two_ranks().run(sharded_masks_on_one_rank):
        assert "give the same sharded masks on all ranks" in message


def test_pruning_starts_when_and_where_it_is_told():
    model = net()
    optimizer = wrap(
        model, method=Pruning(start=0.5, initial=0.6), density=0.2, init={}, total_steps=40,
        delta_t=5, t_end=30,
    )  # fmt: skip
    assert optimizer.density == pytest.approx(0.6, abs=0.01)
    train(optimizer, model, 40)
    moved = [record for record in optimizer.history if record.dropped]
    # Zhu and Gupta 2017, equation 1, from step 20 to step 30.
    expected = {25: 0.2 + 0.4 * (1 - 0.5) ** 3, 30: 0.2}
    assert {record.step: record.density for record in moved} == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("wrong", [{"start": 1.5}, {"initial": 0.0}])
def test_pruning_refuses_an_impossible_start(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pruning(**wrong)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_mask_that_was_edited_in_place_acts_as_its_copy(density, state):
    runs = []
    for copied in (True, False):
        model = net()
        optimizer = wrap(model, "Adam", method="static", density=density, init={}, state=state)
        train(optimizer, model, 3)
        mask = optimizer.masks["0.weight"]
        mask = mask.clone() if copied else mask
        mask[:8] = mask[:8].flip(0)
        mask[8] = True
        optimizer.set_masks({"0.weight": mask})
        train(optimizer, model, 3, seed=1)
        weight, live = model[0].weight.detach(), optimizer.masks["0.weight"]
        assert not weight[~live].any()
        assert int(live.sum()) == optimizer.layers[0].live
        runs.append(weight)
    assert torch.equal(*runs)
