"""GraSP against second derivatives written out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import balanced_batch, grasp
from tests.pruning_at_init.numpy_nets import (
    TanhNet,
    assert_masks,
    batch,
    gradient,
    hessian_product,
    keep_highest,
    squared_error,
    tensors,
    weights_of,
)

NUMEL = 6 * 9 + 9 * 4


def oracle(net, batches, density, temperature):
    """Drop the largest -w * Hg, with gradient and Hessian summed over all batches."""
    weights = weights_of(net)
    by_batch = [gradient(weights, *data, temperature) for data in batches]
    total = [sum(parts) for parts in zip(*by_batch, strict=True)]
    products = [hessian_product(weights, total, *data, temperature) for data in batches]
    product = [sum(parts) for parts in zip(*products, strict=True)]
    scores = [-w * hg for w, hg in zip(weights, product, strict=True)]
    return keep_highest([-score for score in scores], round(density * NUMEL))


def test_hessian_product_of_the_oracle_is_the_derivative_of_its_gradient():
    weights, data = weights_of(TanhNet()), batch(0)
    direction = [np.cos(np.arange(w.size)).reshape(w.shape) for w in weights]
    step = 1e-5
    ahead = gradient([w + step * v for w, v in zip(weights, direction, strict=True)], *data, 3.0)
    behind = gradient([w - step * v for w, v in zip(weights, direction, strict=True)], *data, 3.0)
    product = hessian_product(weights, direction, *data, 3.0)
    for a, b, exact in zip(ahead, behind, product, strict=True):
        np.testing.assert_allclose((a - b) / (2 * step), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_grasp_drops_the_weights_that_reduce_the_gradient(density, temperature):
    net, data = TanhNet(), batch(0)
    masks = grasp(net, squared_error, [tensors(*data)], density=density, temperature=temperature)
    assert_masks(masks, oracle(net, [data], density, temperature))


def test_several_batches_are_as_one():
    net, batches = TanhNet(), [batch(1), batch(2)]
    masks = grasp(net, squared_error, [tensors(*b) for b in batches], density=0.3)
    assert_masks(masks, oracle(net, batches, 0.3, 200.0))


def test_temperature_is_200_unless_said():
    net, data = TanhNet(), tensors(*batch(0))
    expected = grasp(net, squared_error, [data], density=0.3, temperature=200.0)
    masks = grasp(net, squared_error, [data], density=0.3)
    assert_masks(masks, [mask.numpy() for mask in expected.values()])


def test_loss_without_arguments_has_to_divide_by_the_temperature():
    net, (x, t) = TanhNet(), tensors(*batch(0))
    expected = grasp(net, squared_error, [(x, t)], density=0.3, temperature=5.0)
    masks = grasp(net, lambda: squared_error(net(x) / 5.0, t), density=0.3)
    assert_masks(masks, [mask.numpy() for mask in expected.values()])
    with pytest.raises(ValueError, match=r"temperature=5.0 has no effect"):
        grasp(net, lambda: squared_error(net(x), t), density=0.3, temperature=5.0)


def test_outputs_that_cannot_be_divided_by_the_temperature_are_refused_with_a_remedy():
    class WithHidden(TanhNet):
        def forward(self, x):
            return super().forward(x), x

    def first(found, t):
        return squared_error(found[0], t)

    net, other, data = TanhNet(), WithHidden(), tensors(*batch(0))
    other.load_state_dict(net.state_dict())
    with pytest.raises(TypeError, match=r"a tuple.*temperature=200.*a loss of no arguments"):
        grasp(other, first, [data], density=0.3)
    expected = grasp(net, squared_error, [data], density=0.3, temperature=1.0)
    masks = grasp(other, first, [data], density=0.3, temperature=1.0)
    assert_masks(masks, [mask.numpy() for mask in expected.values()])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        grasp(TanhNet(), squared_error, [tensors(*batch(0))], temperature=temperature)


def test_dropout_drops_the_same_in_both_derivatives():
    """Otherwise gradient and Hessian would belong to different networks."""
    net = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Tanh(), nn.Linear(20, 4))
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(out == 0))
    grasp(net, F.cross_entropy, [(torch.randn(8, 6), torch.arange(8) % 4)], density=0.3)
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert seen[0].any()


def test_attention_has_second_derivatives():
    """The fused kernels have no second derivatives."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.randn(2, 3, 8)
    masks = grasp(layer, lambda: layer(x).square().mean() + layer(x).sum(), density=0.3)
    numel = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * numel)


def test_balanced_batch_has_the_first_samples_of_every_class():
    labels = torch.tensor([0, 2, 0, 1, 0, 2, 1, 2, 1, 0])
    batches = [(torch.arange(10.0)[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
    drawn = []
    samples, classes = balanced_batch(
        (drawn.append(i) or b for i, b in enumerate(batches)), classes=3, per_class=2
    )
    assert samples.tolist() == [0, 2, 3, 6, 1, 5]
    assert classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn == [0, 1]


def test_too_few_samples_are_refused_by_class():
    data = [(torch.zeros(3, 2), torch.tensor([0, 0, 1]))]
    with pytest.raises(ValueError, match=r"per_class=2.*\{1: 1, 2: 0\}"):
        balanced_batch(data, classes=3, per_class=2)
    with pytest.raises(ValueError, match="target 1"):
        balanced_batch(data, classes=1, per_class=2)
