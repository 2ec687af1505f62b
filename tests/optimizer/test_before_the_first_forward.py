"""A wrapped model can be scripted, pickled, copied and exported before its first input."""

import copy
import io

import pytest
import torch
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, find_channel_groups
from tests.support.catalogue import build
from tests.support.nets import batch, make
from tests.support.training import train

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}
X, _ = batch(1)


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (X,)).module()


def traced(model: nn.Module) -> nn.Module:
    return torch.jit.trace(model, X)


ACTS = [scripted, saved_whole, exported, traced, copy.deepcopy]
# torch warns of scripting and tracing, and of tracing its own normalisation.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize("act", ACTS)
def test_copy_computes_the_same_and_training_is_not_disturbed(act):
    model, other = make(), make()
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, **SETTINGS)
    undisturbed = SparseOptimizer(build("SGD", other.parameters()), other, **SETTINGS)
    made = act(model)
    torch.testing.assert_close(made(X), model(X))
    train(model, optimizer, 7)
    train(other, undisturbed, 7)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert optimizer.flops() == undisturbed.flops()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("steps", [0, 4])
def test_copy_works_while_a_hook_stays_for_all_of_training(act, steps):
    model = make()
    method = RigLStruct(groups=find_channel_groups(model, X))
    settings = {**SETTINGS, "density": 0.5}
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, method=method, **settings)
    train(model, optimizer, steps)
    made = act(model)
    with torch.no_grad():
        torch.testing.assert_close(made(X), model(X))
    train(model, optimizer, 7, start=steps)
    assert len(optimizer.history) >= 1
    assert not any(record.skipped for record in optimizer.history)


def test_attribute_for_scripting_goes_with_the_hooks():
    model = make()
    before = set(vars(model))
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, **SETTINGS)
    train(model, optimizer, 1)
    assert set(vars(model)) == before
    other = SparseOptimizer(build("SGD", model.parameters()), model, **SETTINGS)
    other.detach()
    assert set(vars(model)) == before


class Prepared(nn.Linear):
    """A module that tells torch.jit.script what to script."""

    def __prepare_scriptable__(self):
        return nn.Linear(3, 2)


def test_model_that_prepares_itself_is_left_to_do_so():
    model = Prepared(3, 2)
    SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **SETTINGS)
    assert type(torch.jit.script(model).forward(torch.ones(1, 3))) is torch.Tensor
