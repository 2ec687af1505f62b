"""The models of the overhead benchmark are what their names say, and can be trained."""

import pytest
import torch

from benchmarks.overhead.contenders import Sparsity
from benchmarks.overhead.inner import matching
from benchmarks.overhead.workloads import WORKLOADS, loss_of
from sparseopt import SparseOptimizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "weights", "tensors"),
    [
        # Published: He et al. 2016, as torchvision counts it.
        ("resnet-50", 25_557_032, 161),
        ("bag", 1000 * 32 * 32, 1000),
        # Twelve times the width squared in each of eight blocks, and a little around them.
        ("gpt", 12 * 8 * 512**2 + (256 + 128 + 256) * 512 + 17 * 2 * 512, 3 + 8 * 8 + 2),
        ("wrn-22-2", 1_079_642, 62),
        ("mlp", 5_702, 6),
    ],
)
def test_models_are_as_large_as_they_are_said_to_be(name: str, weights: int, tensors: int) -> None:
    model = WORKLOADS[name].build(False)
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == weights
    assert len(parameters) == tensors


def test_a_token_of_the_gpt_sees_no_later_ones() -> None:
    torch.manual_seed(0)
    model = WORKLOADS["gpt"].build(True).eval()
    tokens = torch.randint(32, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 32
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("name", [name for name in WORKLOADS if WORKLOADS[name].make_batch])
def test_every_model_with_a_batch_gets_gradients_everywhere(name: str) -> None:
    workload = WORKLOADS[name]
    torch.manual_seed(0)
    model = workload.build(True)
    batch = workload.batch(True, CPU)
    assert all(map(torch.equal, batch, workload.batch(True, CPU)))
    loss_of(model, batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_model_of_weights_alone_says_that_it_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="1,000 linear layers of 32x32.*cannot be trained"):
        WORKLOADS["bag"].batch(True, CPU)


@pytest.mark.parametrize("name", WORKLOADS)
def test_others_get_the_layers_and_densities_that_we_have(name: str) -> None:
    model = WORKLOADS[name].build(True)
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


def test_a_family_of_optimizers_stands_for_all_its_implementations() -> None:
    assert matching("sgd") == ("sgd-for-loop", "sgd-foreach", "sgd-fused")
    assert matching("adamw-fused") == ("adamw-fused",)
    with pytest.raises(ValueError, match="'adam', choose from sgd, adamw"):
        matching("adam")
