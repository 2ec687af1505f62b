"""Masks that the user sets in the middle of training."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparseopt import NM, Pruning
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
    """As many live weights, one in four of them elsewhere."""
    mask = optimizer.masks[name].clone().reshape(-1)
    live, dropped = mask.nonzero().reshape(-1), (~mask).nonzero().reshape(-1)
    count = len(live) // 4
    mask[live[:count]] = False
    mask[dropped[-count:]] = True
    return mask.view_as(optimizer.masks[name])


@pytest.mark.parametrize("state", ["compact", "masked"])
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


def test_measured_cost_counts_each_mask_for_as_long_as_it_was_there():
    model = net()
    optimizer = wrap(model, method="static", density=0.25, init={})
    x = torch.randn(1, 12)
    train(optimizer, model, 10)
    optimizer.set_masks({name: torch.ones_like(mask) for name, mask in optimizer.masks.items()})
    train(optimizer, model, 10)
    report = optimizer.flops(model, x)
    biases = 20
    dense = 2 * (192 + 64) + biases
    mean = 2 * (192 + 64) * (0.25 + 1.0) / 2 + biases
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
    with pytest.raises(ValueError, match="its masks have a structure"):
        optimizer.set_masks({"0": mask})


def masks_set_on_ranks():
    """Each rank asks for masks of its own."""
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
def test_pruning_refuses_a_start_that_there_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pruning(**wrong)
