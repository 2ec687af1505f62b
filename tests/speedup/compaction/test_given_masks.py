"""Masks by name, or zeros, in place of an optimizer; example inputs in one argument."""

import pytest
import torch
from torch import nn

from sparseopt import CompactedTraining, SparseOptimizer, compact

NEURONS = torch.tensor([True, False, True, True, False])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, y):
        return self.last(torch.relu(self.first(x + y)))


def pruned():
    """A model two of whose neurons are zero, and its inputs."""
    model = TwoInputs()
    with torch.no_grad():
        model.first.weight[~NEURONS] = 0
        model.first.bias[~NEURONS] = 0
    return model, (torch.randn(4, 6), torch.randn(4, 6))


def masks_of(model):
    return {"first": NEURONS[:, None].expand_as(model.first.weight)}


@pytest.mark.parametrize("kind", ["names", "nonzero", "optimizer"])
@pytest.mark.parametrize("as_mapping", [False, True])
def test_masks_of_every_kind_give_the_same_model(kind, as_mapping):
    model, (x, y) = pruned()
    masks = "nonzero" if kind == "nonzero" else masks_of(model)
    if kind == "optimizer":
        inner = torch.optim.SGD(model.parameters())
        init = {"last": 1.0}
        masks = SparseOptimizer(inner, model, method="static", mask=masks, init=init)
    example = {"x": x, "y": y} if as_mapping else (x, y)
    smaller = compact(model, masks, example_inputs=example).model
    assert smaller.first.out_features == 3
    torch.testing.assert_close(smaller(x, y), model(x, y))
    assert compact(model, masks, example_inputs=example).kept["last.weight"][1].tolist() == [
        0,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ({"frist": NEURONS}, ValueError, "frist"),
        ({"first": NEURONS}, ValueError, r"masks\['first\.weight'\].*shape"),
        ({"first": NEURONS, "first.weight": NEURONS}, ValueError, "two masks for .*'first.weight'"),
        ("zero", TypeError, "masks='zero'"),
        ({"first": NEURONS.numpy()}, TypeError, r"masks\['first\.weight'\] is a ndarray"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, error, words):
    model, inputs = pruned()
    with pytest.raises(error, match=words):
        compact(model, masks, example_inputs=inputs)


def test_masks_that_drop_weights_other_than_zeros_are_refused_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match=r"masks\['0.weight'\] drops 6 weights .* not zero"):
        compact(model, {"0": mask}, example_inputs=torch.randn(2, 6))
    with torch.no_grad():
        model[0].weight[1] = 0
    compacted = compact(model, {"0": mask}, example_inputs=torch.randn(2, 6))
    assert compacted.model[0].weight.shape == (3, 6)


def test_inputs_are_needed_without_an_optimizer():
    model, _ = pruned()
    with pytest.raises(ValueError, match="example_inputs"):
        compact(model, masks_of(model))


def test_compacted_training_takes_example_inputs():
    model, inputs = pruned()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters()),
        model,
        method="rigl-struct",
        example_inputs=inputs,
        density=0.5,
        total_steps=20,
        delta_t=2,
    )
    with CompactedTraining(model, optimizer, example_inputs=inputs) as training:
        assert not training.is_full
        assert model.first.out_features < 5


def test_model_without_values_is_refused_by_name():
    with torch.device("meta"):
        model = TwoInputs()
    with pytest.raises(ValueError, match="model has no values, because 'first.weight' is on the m"):
        compact(model, "nonzero", example_inputs=(torch.randn(4, 6), torch.randn(4, 6)))
