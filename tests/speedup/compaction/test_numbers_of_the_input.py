"""Models that read numbers or sizes from their input, by ``.item()`` or by a mask as an index."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import compact, find_channel_groups
from tests.speedup.masking import optimizer_without

DROPPED = [0, 1, 2]


class Reader(nn.Module):
    """``read`` changes the hidden channels by a second input, ``extra``."""

    def __init__(self, read):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.read = read

    def forward(self, x, extra):
        return self.last(self.second(self.read(self.first(x).relu(), extra)).relu())


def compacted_reader(read, extra, *, bias):
    torch.manual_seed(0)
    model = Reader(read)
    nn.init.constant_(model.first.bias, bias)
    optimizer = optimizer_without(model, {"first": DROPPED})
    return model, compact(model, optimizer, example_inputs=(torch.randn(4, 6), extra)).model


def assert_same(model, smaller, extra, rows=4):
    x = torch.randn(rows, 6)
    torch.testing.assert_close(smaller(x, extra), model(x, extra))


def scaled(h, z):
    return h * z.max().item()


def scaled_by_a_computed_number(h, z):
    return h * (2 * z.max().item() - 1)


def shifted(h, z):
    return h + z.long().max().item()


def multiplied_with_a_filled_tensor(h, z):
    return h * torch.full_like(h, z.max().item())


def filled_in_place(h, z):
    h = h.clone()
    h[:, :2].fill_(z.max().item())
    return h


@pytest.mark.parametrize(
    "read",
    [
        scaled,
        scaled_by_a_computed_number,
        shifted,
        multiplied_with_a_filled_tensor,
        filled_in_place,
    ],
)
def test_constants_that_change_with_a_number_of_the_input_stay(read):
    model, smaller = compacted_reader(read, torch.tensor([2.0, 1.0]), bias=0.5)
    for number in (2.0, 5.0, -1.0):
        assert_same(model, smaller, torch.tensor([number, -9.0]))


def test_zeros_that_are_scaled_by_a_number_of_the_input_go():
    model, smaller = compacted_reader(scaled, torch.tensor([2.0, 1.0]), bias=-0.5)
    assert smaller.first.out_features == 5
    for number in (2.0, 5.0, -1.0):
        assert_same(model, smaller, torch.tensor([number, -9.0]))


def first_ones_added(h, z):
    return h + h[:, : z.long().max().item()].sum(1, keepdim=True)


def test_channels_that_a_number_of_the_input_selects_stay_with_a_reason():
    extra = torch.tensor([5.0, 1.0])
    model, smaller = compacted_reader(first_ones_added, extra, bias=-0.5)
    assert smaller.first.out_features == 8
    for number in (2.0, 5.0, 8.0):
        assert_same(model, smaller, torch.tensor([number, 0.0]))
    groups = find_channel_groups(model, (torch.randn(4, 6), extra))
    blocked = {group.name: group.blocked for group in groups}
    assert "'slice', with a number that is computed from tensors" in blocked["first.weight"]


class Positions(nn.Module):
    """As many rows of a table are added as the input selects."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(20, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, x, keep):
        rows = self.second(self.first(x).relu())[keep]
        return self.last(rows + self.table[: rows.shape[0]])


def test_a_table_that_is_cut_to_the_number_of_selected_rows():
    torch.manual_seed(0)
    model = Positions()
    nn.init.constant_(model.first.bias, -0.5)
    optimizer = optimizer_without(model, {"first": DROPPED})
    keep = torch.arange(20) % 3 > 0
    smaller = compact(model, optimizer, example_inputs=(torch.randn(20, 6), keep)).model
    assert smaller.first.out_features == 5
    for keep in (torch.arange(20) % 2 > 0, torch.arange(20) > 0):
        assert_same(model, smaller, keep, rows=20)


def checked(h, lengths):
    torch._check(lengths.max().item() <= h.shape[0])
    return h


def test_a_check_of_a_number_of_the_input_keeps_nothing():
    model, smaller = compacted_reader(checked, torch.tensor([1, 4]), bias=0.5)
    assert smaller.first.out_features == 5
    assert_same(model, smaller, torch.tensor([2, 3]))


def test_a_number_that_training_may_change_is_not_constant():
    class Scaled(Reader):
        def __init__(self):
            super().__init__(None)
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x):
            return self.last(self.second(self.first(x).relu() * self.scale.max().item()).relu())

    model = Scaled()
    nn.init.constant_(model.first.bias, 0.5)
    optimizer = optimizer_without(model, {"first": DROPPED})
    smaller = compact(model, optimizer, example_inputs=torch.randn(4, 6)).model
    assert smaller.first.out_features == 8


class Selected(nn.Module):
    """Some rows of a hidden layer, or of the result, are selected by ``select``."""

    def __init__(self, select, *, hidden):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.select = select
        self.hidden = hidden

    def forward(self, x, keep):
        h = self.second(self.first(x).relu()).relu()
        return self.last(self.select(h, keep)) if self.hidden else self.select(self.last(h), keep)


def by_mask(rows, keep):
    return rows[keep]


def by_positions(rows, keep):
    return rows[keep.nonzero().squeeze(1)]


def by_masked_select(rows, keep):
    return rows.masked_select(keep[:, None]).view(-1, rows.shape[1])


def by_own_values(rows, keep):
    return rows[(rows[:, 0] > 0) & keep]


def loss_of_some(rows, keep):
    return F.cross_entropy(rows[keep], keep.long()[keep])


@pytest.mark.parametrize(
    ("select", "hidden"),
    [
        *itertools.product([by_mask, by_positions, by_masked_select, by_own_values], [False, True]),
        (loss_of_some, False),
    ],
)
def test_rows_that_the_input_selects(select, hidden):
    torch.manual_seed(0)
    model = Selected(select, hidden=hidden)
    nn.init.constant_(model.first.bias, -0.5)
    optimizer = optimizer_without(model, {"first": DROPPED})
    keep = torch.arange(20) % 3 > 0
    smaller = compact(model, optimizer, example_inputs=(torch.randn(20, 6), keep)).model
    assert smaller.first.out_features == 5
    # Another number of rows than the example selects.
    keep = torch.arange(20) % 2 > 0
    x = torch.randn(20, 6)
    for one in (model, smaller):
        one.zero_grad()
        one(x, keep).sin().sum().backward()
    torch.testing.assert_close(smaller(x, keep), model(x, keep))
    torch.testing.assert_close(smaller.first.weight.grad, model.first.weight.grad[3:])


def test_rows_that_chance_selects_in_training():
    class Thinned(Selected):
        def forward(self, x):
            h = self.second(self.first(x).relu()).relu()
            return self.last(h[torch.rand(len(h)) < 0.5] if self.training else h)

    for seed in range(3):
        torch.manual_seed(seed)
        model = Thinned(None, hidden=True)
        nn.init.constant_(model.first.bias, -0.5)
        optimizer = optimizer_without(model, {"first": DROPPED})
        smaller = compact(model, optimizer, example_inputs=torch.randn(20, 6)).model
        assert smaller.first.out_features == 5
        x = torch.randn(20, 6)
        torch.testing.assert_close(smaller.eval()(x), model.eval()(x))


def test_neurons_whose_rows_are_selected_by_a_mask_are_a_group_with_the_reason_why_they_stay():
    model = Selected(by_mask, hidden=True)
    inputs = (torch.randn(20, 6), torch.arange(20) % 3 > 0)
    blocked = {group.name: group.blocked for group in find_channel_groups(model, inputs)}
    assert blocked["first.weight"] is None
    assert "'index'" in blocked["second.weight"]
