"""`rigl-struct` does not move channels that a tied weight both makes and reads."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import NoSparseLayerError, SparseOptimizer, compact, find_channel_groups
from tests.support.catalogue import build
from tests.support.channel_runs import SETTINGS


class LanguageModel(nn.Module):
    """The embedding is the output projection too, and no normalisation is between them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, tokens):
        hidden = self.down(self.up(self.embedding(tokens)).relu())
        return F.linear(hidden, self.embedding.weight)


class Autoencoder(nn.Module):
    """The decoder has the encoder's weight, transposed."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(10, 32)

    def forward(self, x):
        return F.linear(self.encoder(x).relu(), self.encoder.weight.t())


def wrapped(model, example):
    return SparseOptimizer(
        build("SGD", model.parameters()),
        model,
        method="rigl-struct",
        example_inputs=example,
        **{**SETTINGS, "density": 0.5, "init": {}},
    )


def test_update_with_a_tied_embedding_changes_the_output_only_by_what_it_drops(caplog):
    torch.manual_seed(0)
    model, tokens = LanguageModel(), torch.randint(20, (8, 5))
    with caplog.at_level(logging.INFO, logger="sparseopt"):
        optimizer = wrapped(model, tokens)
    assert "the weight 'embedding.weight' both makes and reads them" in caplog.text
    updates = 0
    for _ in range(12):
        expected, is_update = copy.deepcopy(model), optimizer.is_update_step
        output = model(tokens)
        with torch.no_grad():
            torch.testing.assert_close(output, expected(tokens))
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_update:
            with torch.no_grad():
                expected.down.weight[~optimizer.masks["down.weight"]] = 0
                torch.testing.assert_close(model(tokens), expected(tokens))
            updates += 1
    assert updates > 1
    assert not optimizer.masks["down.weight"].all()


def test_tied_autoencoder_is_refused_with_the_reason():
    with pytest.raises(NoSparseLayerError, match="'encoder.weight' both makes and reads them"):
        wrapped(Autoencoder(), torch.randn(4, 10))


def test_tied_weight_has_its_own_role_and_can_be_compacted():
    torch.manual_seed(0)
    model, x = Autoencoder(), torch.randn(4, 10)
    group = next(one for one in find_channel_groups(model, x) if one.channels == 32)
    roles = {(part.name, part.dim): part.role for part in group.slices}
    assert roles == {("encoder.weight", 0): "tied", ("encoder.bias", 0): "bias"}
    live = torch.arange(32) % 2 == 0
    with torch.no_grad():
        model.encoder.weight[~live] = 0
        model.encoder.bias[~live] = 0
    masks = {"encoder": live[:, None].expand(32, 10)}
    smaller = compact(model, masks, example_inputs=x).model
    assert smaller.encoder.weight.shape == (16, 10)
    torch.testing.assert_close(smaller(x), model(x))
