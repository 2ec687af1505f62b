"""Condensed copies of popular architectures compute the same as the masked models."""

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.cifar.models import WideResNet
from sparseopt.speedup import kernels
from sparseopt.speedup.inference.candidates import candidates_for, uncovered
from sparseopt.speedup.inference.network import Network
from sparseopt.speedup.inference.tracing import take_apart
from tests.speedup.inference.nets import settled, sparse_masks

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not())),
    pytest.mark.slow,
]


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100)
    model = transformers.GPT2LMHeadModel(config).eval()

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens, use_cache=False).logits

    return Logits()


IMAGES = {
    "wrn-22-2": (lambda: WideResNet(22, 2), 32),
    **{
        name: (lambda name=name: getattr(torchvision.models, name)(num_classes=10), size)
        for name, size in {
            "resnet18": 64,
            "resnet50": 64,
            "mobilenet_v2": 64,
            "densenet121": 64,
            "vit_b_16": 224,
        }.items()
    },
}


def live(model, masks, x, dtype):
    network, _ = take_apart(model, (x,), {})
    candidates, obstacles = candidates_for(network, masks, dtype)
    layers = {one.site.name: one.layers.get("live", one.layers["dense"]) for one in candidates}
    return network, obstacles, network.build(layers, None if dtype == torch.float32 else dtype)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_condensed_network_computes_the_same_as_the_masked_network(name, batch):
    make, size = IMAGES[name]
    torch.manual_seed(0)
    model = settled(make())
    masks = sparse_masks(model, 0.1)
    x = torch.randn(batch, 3, size, size)
    network, obstacles, condensed = live(model, masks, x, torch.float32)
    assert isinstance(network, Network)
    # Depthwise convolutions have no mask here, because they have one channel in each group.
    assert obstacles == {}
    with torch.no_grad():
        expected, found = model(x), condensed(x)
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("name", ["wrn-22-2", "resnet18"])
def test_condensed_network_in_bfloat16_is_as_exact_as_the_masked_network(name):
    make, size = IMAGES[name]
    torch.manual_seed(0)
    model = settled(make())
    masks = sparse_masks(model, 0.1)
    x = torch.randn(16, 3, size, size)
    _, _, condensed = live(model, masks, x, torch.bfloat16)
    with torch.no_grad():
        expected = model(x)
        found = condensed(x.bfloat16()).float()
        plain = model.bfloat16()(x.bfloat16()).float()
    assert (found - expected).norm() <= 1.2 * (plain - expected).norm()


def test_gpt2_runs_and_its_head_is_sparse():
    model = gpt2()
    weight = model.model.lm_head.weight
    weight = model.model.lm_head.weight = nn.Parameter(weight.detach().clone())
    mask = torch.rand(weight.shape) < 0.1
    with torch.no_grad():
        weight[~mask] = 0
    masks = {"model.lm_head.weight": mask}
    tokens = torch.randint(100, (2, 12))
    network, _, condensed = live(model, masks, tokens, torch.float32)
    assert uncovered(model, network, masks) == []
    with torch.no_grad():
        torch.testing.assert_close(condensed(tokens), model(tokens), rtol=1e-4, atol=1e-5)
