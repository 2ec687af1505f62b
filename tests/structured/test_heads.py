"""Attention heads and hidden neurons, in hand-written blocks, torch's and transformers'."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import find_channel_groups
from tests.support.attention_nets import TRANSFORMERS


def free(model, example_inputs):
    return [group for group in find_channel_groups(model, example_inputs) if not group.blocked]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_and_neurons_are_found_in_every_block(name):
    if name in {"gpt2", "llama", "bert"}:
        pytest.importorskip("transformers")
    case = TRANSFORMERS[name]
    groups = free(case.build(), case.inputs())
    heads = [group.channels for group in groups if group.kind == "head"]
    neurons = [group.channels for group in groups if group.kind == "neuron"]
    assert heads == [case.heads] * case.blocks
    # After the blocks, a classifier of transformers has hidden neurons of its own.
    assert neurons[: case.blocks] == [case.neurons] * case.blocks


def test_heads_are_found_in_a_model_that_returns_a_cache():
    pytest.importorskip("transformers")
    case = TRANSFORMERS["gpt2"]
    model, (_, keywords) = case.build(), case.inputs()
    words = {"input_ids": keywords["input_ids"]}
    groups = free(model, words)
    assert sum(group.kind == "head" for group in groups) == case.blocks
    assert model(**words).past_key_values is not None


@torch.no_grad()
def test_heads_are_found_where_torch_would_take_its_fast_path():
    case = TRANSFORMERS["encoder"]
    groups = free(case.build(), case.inputs())
    assert sum(group.kind == "head" for group in groups) == case.blocks


def test_key_head_comes_with_all_query_heads_that_share_it():
    pytest.importorskip("transformers")
    case = TRANSFORMERS["llama"]
    group = free(case.build(), case.inputs())[0]
    rows = {part.name.split(".")[-2]: tuple(part.index.shape) for part in group.slices}
    assert rows == {"q_proj": (4, 8), "k_proj": (4, 4), "v_proj": (4, 4), "o_proj": (4, 8)}


class Grouped(nn.Module):
    """Grouped queries by torch's own argument, and a scale for each head of queries."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q * self.scale, k, v, enable_gqa=True)
        return self.out(attended.transpose(1, 2).flatten(2))


def test_attention_itself_may_repeat_keys_and_values_for_grouped_queries():
    (group,) = free(Grouped(), torch.zeros(2, 3, 6))
    sizes = {part.name: tuple(part.index.shape) for part in group.slices}
    assert sizes["q.weight"] == (2, 8)
    assert sizes["k.weight"] == sizes["v.weight"] == (2, 4)
    assert sizes["scale"] == (2, 2)


class Single(nn.Module):
    """Attention without heads: channels of values can be removed, of queries and keys none."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


def test_queries_and_keys_without_heads_stay_whole():
    groups = find_channel_groups(Single(), torch.zeros(2, 3, 6))
    by_name = {group.name: group for group in groups}
    assert by_name["v.weight"].channels == 4
    assert by_name["v.weight"].blocked is None
    assert "scales their products" in by_name["q.weight"].blocked


class Shuffled(nn.Module):
    """Channels in two groups that change places."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x).unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)
        return self.last(x)


class Uneven(nn.Module):
    """The next layer reads a slice of the channels, whose size is a number in the code."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.first(x)[..., :3])


@pytest.mark.parametrize(
    ("model", "words"), [(Shuffled(), "several dimensions"), (Uneven(), "separates some")]
)
def test_channels_that_are_split_by_fixed_numbers_are_blocked(model, words):
    groups = {group.name: group for group in find_channel_groups(model, torch.zeros(2, 6))}
    assert words in groups["first.weight"].blocked
