"""The models of the overhead benchmark are what their names say, and can be trained."""

import pytest
import torch

from benchmarks.overhead.contenders import Sparsity
from benchmarks.overhead.workloads import WORKLOADS, loss_of
from sparseopt import SparseOptimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "weights", "tensors"),
    [
        # Published: He et al. 2016, as torchvision counts it.
        ("resnet-50", 25_557_032, 161),
        ("bag", 1000 * 32 * 32, 1000),
        # Each of eight blocks has twelve times the width squared. Embeddings and norms add a few.
        ("gpt", 12 * 8 * 512**2 + (256 + 128 + 256) * 512 + 17 * 2 * 512, 3 + 8 * 8 + 2),
        ("wrn-22-2", 1_079_642, 62),
        ("mlp", 17 * 64 + 64 + 64 * 64 + 64 + 64 * 6 + 6, 6),
    ],
)
def test_models_are_as_large_as_they_are_said_to_be(name: str, weights: int, tensors: int) -> None:
    model = WORKLOADS[name].build()
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == weights
    assert len(parameters) == tensors


def test_token_of_the_gpt_sees_no_later_ones() -> None:
    torch.manual_seed(0)
    model = WORKLOADS["gpt"].build().eval()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WORKLOADS if WORKLOADS[name].make_batch])
def test_every_model_with_a_batch_gets_gradients_everywhere(name: str) -> None:
    workload = WORKLOADS[name]
    torch.manual_seed(0)
    model = workload.build()
    batch = workload.batch(CPU)
    assert all(map(torch.equal, batch, workload.batch(CPU)))
    loss_of(model, batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_model_of_weights_alone_says_that_it_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="1,000 linear layers of 32x32.*cannot be trained"):
        WORKLOADS["bag"].batch(CPU)


@pytest.mark.parametrize("name", WORKLOADS)
def test_others_get_the_layers_and_densities_that_we_have(name: str) -> None:
    model = WORKLOADS[name].build()
    wrapped = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        density=0.1,
        init="erk",
        total_steps=1000,
    )
    ours = {layer.name.removesuffix(".weight"): layer.density for layer in wrapped.layers}
    others = Sparsity(density=0.1, update_every=2).by_layer(model)
    # Live counts are whole numbers.
    assert others == pytest.approx(ours, abs=1e-2)
