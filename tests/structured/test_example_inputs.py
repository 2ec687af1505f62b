"""The forms of ``example_inputs`` of ``find_channel_groups``, and the old spelling."""

import pytest
import torch
from torch import nn

from sparseopt import find_channel_groups


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).relu())


LEFT, RIGHT = torch.zeros(2, 4), torch.zeros(2, 6)


def names_of(groups):
    return [[part.name for part in group.slices] for group in groups]


EXPECTED = ["left.weight", "left.bias", "right.weight", "right.bias", "head.weight"]


@pytest.mark.parametrize(
    "example_inputs",
    [
        (LEFT, RIGHT),
        [LEFT, RIGHT],
        {"left": LEFT, "right": RIGHT},
        ((LEFT,), {"right": RIGHT}),
    ],
)
def test_example_inputs_of_every_form_find_the_same_groups(example_inputs):
    groups = names_of(find_channel_groups(TwoInputs(), example_inputs))
    assert EXPECTED in groups
    assert groups == names_of(find_channel_groups(TwoInputs(), example_inputs=(LEFT, RIGHT)))


@pytest.mark.parametrize(
    ("inputs", "keywords"),
    [((LEFT, RIGHT), {}), ((LEFT,), {"right": RIGHT}), ((), {"left": LEFT, "right": RIGHT})],
)
def test_old_spelling_of_inputs_works_and_warns_at_the_caller(inputs, keywords):
    with pytest.warns(DeprecationWarning, match="example_inputs=") as caught:
        groups = find_channel_groups(TwoInputs(), *inputs, **keywords)
    assert EXPECTED in names_of(groups)
    assert caught[0].filename == __file__
