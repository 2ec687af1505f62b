"""Tracing follows casts, transposed weights, attention, and wrappers around a model."""

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn

from sparseopt.structured import find_channel_groups
from tests.structured.physical import silence, take_out


def by_name(groups):
    return {group.name: group for group in groups if not group.blocked}


def places(group):
    return {(part.name, part.dim): part.role for part in group.slices}


def agrees_without(model, name, channels, x):
    """Whether removing channels of a group changes the output as zeros in their columns do."""
    group = by_name(find_channel_groups(model, x))[name]
    chosen = [(group, torch.tensor(channels))]
    smaller = take_out(model, chosen)
    silence(model, chosen)
    torch.testing.assert_close(smaller.eval()(x), model.eval()(x))


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu().to(torch.float64).tanh()
        return self.last(x.float())


def test_cast_keeps_channels_apart():
    x = torch.randn(4, 6)
    assert by_name(find_channel_groups(Casting(), x))["first.weight"].channels == 8
    agrees_without(Casting(), "first.weight", [1, 5], x)


class Transposed(nn.Module):
    """Weights that are transposed before a product, and a scale that is reshaped."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 6))
        self.scale = nn.Parameter(torch.randn(8))
        self.last = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        x = (x @ self.first.t()).relu() * self.scale.view(1, 8)
        return x @ self.last.t()


class FromTheLeft(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Parameter(torch.randn(5, 8))
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last((self.middle @ self.first(x).relu().t()).t().relu())


def test_weight_is_followed_through_its_transposition():
    x = torch.randn(4, 6)
    group = by_name(find_channel_groups(Transposed(), x))["first"]
    assert places(group) == {
        ("first", 0): "producer",
        ("scale", 0): "elementwise",
        ("last", 1): "consumer",
    }


def test_weight_may_be_the_left_factor():
    x = torch.randn(4, 6)
    groups = by_name(find_channel_groups(FromTheLeft(), x))
    assert places(groups["first.weight"])["middle", 1] == "consumer"
    assert places(groups["middle"])["middle", 0] == "producer"
    agrees_without(FromTheLeft(), "first.weight", [0, 7], x)
    agrees_without(FromTheLeft(), "middle", [2], x)


class Joined(nn.Module):
    """A bias that is concatenated from two parameters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8, bias=False)
        self.left, self.right = (nn.Parameter(torch.randn(4)) for _ in range(2))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        bias = torch.cat([self.left, self.right])
        return self.last(F.linear(x, self.first.weight, bias))


def test_channels_stay_where_not_all_that_belongs_to_them_is_known():
    assert "first.weight" not in by_name(find_channel_groups(Joined(), torch.randn(4, 6)))


class Attention(nn.MultiheadAttention):
    pass


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.embed = nn.Conv2d(8, 8, 1)
        self.attention = attention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.embed(self.stem(x).relu()).flatten(2).transpose(1, 2)
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("attention", [nn.MultiheadAttention, Attention])
def test_inputs_of_torchs_attention_stay_and_layers_before_them_are_free(attention):
    groups = find_channel_groups(Attending(attention), torch.randn(2, 3, 4, 4))
    reasons = {group.name: group.blocked for group in groups if group.blocked}
    assert reasons["embed.weight"] == "attention has their number written in it, as its embed_dim"
    assert "stem.weight" in by_name(groups)


def test_wrappers_are_removed():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 6)
    expected = [(group.name, places(group)) for group in find_channel_groups(model, x)]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for wrapper in (parallel, nn.DataParallel(model), torch.compile(model, backend="eager")):
            found = [(group.name, places(group)) for group in find_channel_groups(wrapper, x)]
            assert found == expected
    finally:
        distributed.destroy_process_group()
