"""Parameters that share memory without being one parameter."""

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh
from tests.support.wrapping import wrap


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 32), nn.Linear(32, 16)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


class LanguageModel(nn.Module):
    """The head is tied to the embedding through `.data`."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.head.weight.data = self.embedding.weight.data

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Halves(nn.Module):
    """Two layers that are the even and the odd columns of one matrix, or two parts of a buffer."""

    def __init__(self, *, interleaved):
        super().__init__()
        self.one, self.other = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        both = torch.randn(16, 32) if interleaved else torch.randn(32, 16)
        halves = (both[:, ::2], both[:, 1::2]) if interleaved else both.chunk(2)
        self.one.weight, self.other.weight = map(nn.Parameter, halves)

    def forward(self, x):
        return self.other(self.one(x).relu())


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Autoencoder, r"'encoder\.weight' and 'decoder\.weight'"),
        (LanguageModel, r"'head\.weight' and 'embedding\.weight'"),
    ],
)
def test_parameters_that_share_memory_are_named(net, names):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=names + " are two parameters with the same memory"):
        wrap(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_group_that_shares_memory_with_the_model_is_refused():
    model = Autoencoder()
    decoder = list(model.decoder.parameters())
    inner = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    model.decoder.weight = nn.Parameter(torch.randn(16, 32))
    optimizer = SparseOptimizer(inner, model, method="static", density=0.2)
    model.decoder.weight = decoder[0]
    with pytest.raises(ValueError, match=r"'decoder\.weight' and 'encoder\.weight'"):
        optimizer.add_param_group({"params": [model.decoder.weight]})
    assert len(optimizer.param_groups) == 1


def test_dense_weights_may_share_memory():
    model = LanguageModel()
    model.middle = nn.Linear(16, 16)
    optimizer = wrap(model, sparse={"head": False})
    assert [layer.name for layer in optimizer.layers] == ["middle.weight"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_disjoint_parts_of_one_storage_have_masks_of_their_own(interleaved):
    model = Halves(interleaved=interleaved)
    optimizer = wrap(model, "Adam", init={})
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    assert_dropped_are_fresh(optimizer)
    for name, mask in optimizer.masks.items():
        assert int(mask.sum()) == round(0.2 * 256)
        assert not model.get_parameter(name)[~mask].any()
