"""Frozen programs compute what the model computes, for inputs that they were not made for too."""

import copy

import pytest
import torch
from torch import nn

from sparseopt.speedup.inference.dense_implementations import Frozen
from tests.speedup.inference.nets import quickly


class Images(nn.Module):
    """A model that scales images of bytes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        if x.dtype == torch.uint8:
            x = x.float() / 255
        return self.layer(x)


class Masking(Images):
    """A model that takes a mask of bools, or of numbers to add."""

    def forward(self, x, mask):
        x = x.masked_fill(mask, -1) if mask.dtype == torch.bool else x + mask
        return self.layer(x)


class Containers(Images):
    """A model of two inputs in a list, a tuple or a dictionary, which it treats differently."""

    def forward(self, given):
        if isinstance(given, dict):
            return self.layer(given["x"] - given["y"] if "y" in given else given["x"])
        x, y = given
        return self.layer(x + y if isinstance(given, tuple) else x * y)


@pytest.fixture
def frozen(times):
    """Return a function that condenses a model to a frozen program."""
    times["frozen TorchScript, float32"] = 1.0

    def made(model, *args):
        condensed = quickly(model, "nonzero", args)
        assert condensed.report.chosen == "frozen TorchScript"
        assert isinstance(condensed.model, Frozen)
        return condensed.model

    return made


X, Y = torch.rand(2, 8), torch.rand(2, 8)
BYTES = torch.randint(256, (2, 8), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("copied", [nn.Module.eval, copy.deepcopy])
@pytest.mark.parametrize(
    ("net", "example", "other"),
    [
        (Images, (BYTES,), (X,)),
        (Images, (X,), (BYTES,)),
        (Masking, (X, Y > 0.5), (X, Y)),
        (Masking, (X, Y), (X, Y > 0.5)),
        (Containers, ((X, Y),), ([X, Y],)),
        (Containers, ([X, Y],), ((X, Y),)),
        (Containers, ({"x": X, "y": Y},), ({"y": X, "x": Y},)),
        (Containers, ({"x": X, "z": Y},), ({"x": X, "y": Y},)),
        (Containers, ({"x": X},), ({"x": X, "y": Y},)),
    ],
)
def test_inputs_of_another_structure_or_number_format_than_the_example(
    frozen, net, example, other, copied
):
    model = net().eval()
    program = copied(frozen(model, *example))
    torch.testing.assert_close(program(*example), model(*example))
    torch.testing.assert_close(program(*other), model(*other))


@pytest.mark.parametrize("other", [2, 1.0, True, None])
def test_inputs_that_are_not_tensors_have_type_and_value_of_the_example(other):
    class Fallback(nn.Module):
        def forward(self, x, other):
            return "fallback"

    program = Frozen(lambda x, other: "program", Fallback(), (X, 1))
    assert program(X, other) == "fallback"
    assert program(X, 1) == "program"
