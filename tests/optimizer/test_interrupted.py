"""Ctrl-C, or an error in the middle of a step, leaves a model that can be saved."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import MatrixNet, make
from tests.support.training import backward, train
from tests.support.watching import AfterEveryOperation
from tests.support.wrapping import settings_with, wrap

SETTINGS = settings_with(delta_t=20)


class Interrupting:
    """Interrupts the run at the operation of the given number.

    A signal cannot be timed to that moment; Python raises it between two calls, as this does.
    """

    def __init__(self, number: int):
        self.number = number

    def __call__(self) -> None:
        self.number -= 1
        if self.number == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("number", [1, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60])
def test_interrupted_update_leaves_no_layer_empty(number, channels_last, state):
    model = make(channels_last=channels_last)
    optimizer = wrap(model, "AdamW", state=state, init="uniform", **SETTINGS)
    train(model, optimizer, 3)
    backward(model, 4)
    interrupting = Interrupting(number)
    try:
        with AfterEveryOperation(interrupting):
            optimizer.step()
    except KeyboardInterrupt:
        pass
    # With live state a step of this model has fewer operations than 60, and than 50 in a row.
    if interrupting.number > 0:
        assert state == "live"
        assert number >= (60 if channels_last else 50)
    for layer in optimizer.layers:
        assert int(layer.weight.count_nonzero()) == layer.live
    train(model, optimizer, 3, start=4)
    assert_dropped_are_fresh(optimizer)


class Stopping(torch.optim.Optimizer):
    """Stops after it has moved every weight, dropped ones too where it mixes all entries."""

    stops = False

    def step(self, closure=None):
        super().step(closure)
        if self.stops:
            raise KeyboardInterrupt


class StoppingMuon(Stopping, torch.optim.Muon):
    pass


class StoppingSGD(Stopping, torch.optim.SGD):
    pass


def test_dropped_weights_stay_zero_where_the_optimizer_mixes_all_entries():
    model = make(MatrixNet)
    inner = StoppingMuon(model.parameters(), lr=0.05)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 2)
    backward(model, 3)
    inner.stops = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert_dropped_are_fresh(optimizer)


def test_weights_that_were_lent_come_back_in_their_shape():
    model = make()
    shapes = [parameter.shape for parameter in model.parameters()]
    inner = StoppingSGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = SparseOptimizer(inner, model, state="live", **SETTINGS)
    train(model, optimizer, 2)
    backward(model, 3)
    inner.stops = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    inner.stops = False
    assert [parameter.shape for parameter in model.parameters()] == shapes
    assert all(int(layer.weight.count_nonzero()) == layer.live for layer in optimizer.layers)
    train(model, optimizer, 2, start=3)
    assert_dropped_are_fresh(optimizer)
