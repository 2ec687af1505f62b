"""The memory that a model takes in a process that serves it."""

import pytest
import torch
from torch import nn

from benchmarks.speed.condensed import bytes_to_serve


def test_memory_to_serve_a_model_is_mostly_its_weights():
    model = nn.Linear(4096, 4096)
    weights = 4 * 4096 * 4096
    assert weights <= bytes_to_serve(model, torch.randn(1, 4096)) < 2 * weights


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_memory_of_a_torchscript_program_is_not_known():
    model = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    assert bytes_to_serve(model, torch.randn(1, 2)) is None
