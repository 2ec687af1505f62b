"""SNIP against derivatives written out by hand."""

import numpy as np
import pytest

from sparseopt import snip
from tests.pruning_at_init.numpy_nets import (
    TanhNet,
    assert_masks,
    batch,
    gradient,
    keep_highest,
    squared_error,
    tensors,
    weights_of,
)

NUMEL = 6 * 9 + 9 * 4


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_snip_keeps_the_weights_of_largest_gradient_times_weight(density):
    net, data = TanhNet(), batch(0)
    weights = weights_of(net)
    scores = [np.abs(g * w) for g, w in zip(gradient(weights, *data), weights, strict=True)]
    masks = snip(net, squared_error, [tensors(*data)], density=density)
    assert_masks(masks, keep_highest(scores, round(density * NUMEL)))


def test_several_batches_score_by_their_summed_gradient():
    """Gradients are summed before the magnitude is taken, so gradients that cancel score 0."""
    net, one, two = TanhNet(), batch(1), batch(2)
    weights = weights_of(net)
    sums = [g + h for g, h in zip(gradient(weights, *one), gradient(weights, *two), strict=True)]
    scores = [np.abs(g * w) for g, w in zip(sums, weights, strict=True)]
    masks = snip(net, squared_error, (tensors(*data) for data in (one, two)), density=0.3)
    assert_masks(masks, keep_highest(scores, round(0.3 * NUMEL)))


def test_loss_of_no_arguments_runs_the_model_itself():
    net, data = TanhNet(), tensors(*batch(0))
    expected = snip(net, squared_error, [data], density=0.3)
    masks = snip(net, lambda: squared_error(net(data[0]), data[1]), density=0.3)
    assert_masks(masks, [mask.numpy() for mask in expected.values()])


def test_model_with_several_outputs_is_scored_by_the_loss_that_reads_them():
    class WithHidden(TanhNet):
        def forward(self, x):
            return {"out": super().forward(x), "in": x}

    net, data = TanhNet(), tensors(*batch(0))
    other = WithHidden()
    other.load_state_dict(net.state_dict())
    expected = snip(net, squared_error, [data], density=0.3)
    masks = snip(other, lambda found, t: squared_error(found["out"], t), [data], density=0.3)
    assert_masks(masks, [mask.numpy() for mask in expected.values()])


def test_scores_choose_within_each_layer_with_init():
    net, data = TanhNet(), batch(0)
    weights = weights_of(net)
    scores = [np.abs(g * w) for g, w in zip(gradient(weights, *data), weights, strict=True)]
    masks = snip(
        net, squared_error, [tensors(*data)], density=0.5, init={"first": 0.25, "second": 0.5}
    )
    assert_masks(
        masks, [keep_highest([scores[0]], round(0.25 * 54))[0], keep_highest([scores[1]], 18)[0]]
    )
