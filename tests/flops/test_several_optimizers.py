"""``flops()`` of one optimizer counts the masks of all optimizers over the model."""

import copy

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer


def pair(density=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    optimizers = [
        SparseOptimizer(
            torch.optim.SGD(layer.parameters(), lr=0.1), model, method="static", density=density
        )
        for layer in (model[0], model[2])
    ]
    return model, optimizers


def test_each_of_two_reports_the_whole_model():
    model, optimizers = pair()
    live = sum(int((p != 0).sum()) for p in model.parameters())
    for optimizer in optimizers:
        report = optimizer.flops(model, torch.zeros(1, 64))
        assert report.inference_dense == 2 * 2 * 64 * 64
        assert report.inference_sparse == 2 * live
        assert [layer.sparse for layer in report.layers] == [
            2.0 * int((p != 0).sum()) for p in model.parameters()
        ]


def test_training_of_the_other_layers_is_priced_at_their_masks():
    model, (first, _) = pair()
    report = first.flops(model, torch.zeros(1, 64))
    assert report.train_ratio == pytest.approx(report.inference_ratio)


def test_layer_of_a_detached_optimizer_counts_as_dense():
    model, (first, second) = pair()
    second.detach()
    report = first.flops(model, torch.zeros(1, 64))
    assert report.layers[1].sparse == report.layers[1].dense


def test_copy_has_the_masks_of_the_one_that_is_asked():
    model, (first, _) = pair()
    report = first.flops(copy.deepcopy(model), torch.zeros(1, 64))
    assert report.layers[0].sparse == pytest.approx(0.1 * report.layers[0].dense, rel=0.01)
    assert report.layers[1].sparse == report.layers[1].dense
