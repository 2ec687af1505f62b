"""What Ctrl-C, or an error in the middle of a step, leaves behind: a model that can be saved."""

import pytest
import torch

from sparseopt import SparseOptimizer
from sparseopt.masks import layer as layer_module
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import MatrixNet, make
from tests.support.training import backward, train
from tests.support.wrapping import settings_with, wrap

SETTINGS = settings_with(delta_t=20)


def interrupted_after_clearing(monkeypatch):
    """Have the next layer that is cleared interrupted just then.

    A signal cannot be timed to that moment; Python raises it between two calls, as this does.
    """
    clear = layer_module.clear_

    def clear_and_interrupt(flat):
        monkeypatch.undo()
        clear(flat)
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_module, "clear_", clear_and_interrupt)


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_layer_is_left_empty(monkeypatch, channels_last, state):
    model = make(channels_last=channels_last)
    optimizer = wrap(model, "AdamW", state=state, init="uniform", **SETTINGS)
    train(model, optimizer, 3)
    backward(model, 4)
    interrupted_after_clearing(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
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


def test_what_was_dropped_stays_zero_where_the_optimizer_mixes_all_entries():
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
    optimizer = SparseOptimizer(inner, model, state="compact", **SETTINGS)
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
