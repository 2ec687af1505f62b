"""Heads, and channels under a random mask, are found in the ways that people write them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, compact, find_channel_groups
from tests.speedup.masking import optimizer_without


class Attention(nn.Module):
    """Attention in a residual block, with 4 heads of queries and ``shared`` heads of keys."""

    def __init__(self, attend, shared):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 32), nn.LayerNorm(32)
        self.query = nn.Linear(32, 32)
        self.key, self.value = nn.Linear(32, 8 * shared), nn.Linear(32, 8 * shared)
        self.out, self.last = nn.Linear(32, 32), nn.Linear(32, 3)
        self.attend = attend

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        heads = [part(y).unflatten(-1, (-1, 8)) for part in (self.query, self.key, self.value)]
        return self.last(x + self.out(self.attend(*heads).flatten(2)))


def by_repeat_interleave(query, key, value):
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, dim=1)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def by_einsum(query, key, value):
    scores = torch.einsum("bthd,bshd->bhts", query, key) / 8**0.5
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), value)


def by_einsum_over_groups(query, key, value):
    query = query.unflatten(2, (key.shape[2], -1))
    scores = torch.einsum("btgrd,bsgd->bgrts", query, key) / 8**0.5
    return torch.einsum("bgrts,bsgd->btgrd", scores.softmax(-1), value).flatten(2, 3)


@pytest.mark.parametrize(
    ("attend", "shared"),
    [(by_repeat_interleave, 2), (by_einsum, 4), (by_einsum_over_groups, 2)],
)
def test_heads_move_and_are_removed_however_attention_is_written(attend, shared):
    torch.manual_seed(0)
    model, x = Attention(attend, shared), torch.randn(4, 5, 6)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method=RigLStruct(kinds={"head": 0.5}),
        example_inputs=x,
        total_steps=100,
        delta_t=5,
    )
    for _ in range(6):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.key.out_features == 8 * shared // 2
    assert smaller.query.out_features == 16
    for tokens in (5, 7):
        x = torch.randn(3, tokens, 6)
        torch.testing.assert_close(smaller(x), model(x))


class Residual(nn.Module):
    """A residual block whose branch is dropped at random in training."""

    def __init__(self, drop):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Linear(8, 2)
        self.drop = drop

    def forward(self, x):
        x = self.first(x).relu()
        branch = self.branch(x)
        x = x + (self.drop(branch) if self.training else branch)
        return self.last(x.relu().mean((2, 3)))


DROPS = {
    "new_empty": lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.9),
    "new_zeros": lambda x: x + x.new_zeros(len(x), 1, 1, 1),
    "new_full": lambda x: x * x.new_full((len(x), 1, 1, 1), 0.9),
    "full_like": lambda x: x * torch.full_like(x, 0.9),
    "rand_like": lambda x: x * (torch.rand_like(x) < 0.9),
    "zeros_like": lambda x: torch.where(x > -1, x, torch.zeros_like(x)),
    "ones_like": lambda x: x * torch.ones_like(x),
}


@pytest.mark.parametrize("name", DROPS)
def test_tensor_made_in_the_shape_or_type_of_another_does_not_block_its_channels(name):
    torch.manual_seed(0)
    model, x = Residual(DROPS[name]), torch.randn(2, 3, 6, 6)
    groups = {group.name: group for group in find_channel_groups(model, x)}
    assert groups["first.weight"].channels == 8
    assert groups["first.weight"].blocked is None
    optimizer = optimizer_without(model, {"first": [1, 5], "branch": [1, 5]})
    with torch.no_grad():
        model.first.bias[[1, 5]] = 0
    smaller = compact(model.eval(), optimizer, example_inputs=x).model
    assert smaller.last.in_features == 6
    torch.testing.assert_close(smaller(x), model(x))
