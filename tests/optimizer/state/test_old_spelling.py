"""The name that 0.1.0 had for state of live weights only works, with a warning."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.nets import make
from tests.support.training import train
from tests.support.wrapping import SETTINGS


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_compact_is_the_old_spelling_of_live():
    old, new = make(), make()
    with pytest.warns(
        DeprecationWarning, match='^state="compact" is an old spelling.* write state="live"'
    ) as caught:
        optimizer = SparseOptimizer(adamw(old), old, state="compact", **SETTINGS)
    assert caught[0].filename == __file__
    current = SparseOptimizer(adamw(new), new, state="live", **SETTINGS)
    for model, wrapper in ((old, optimizer), (new, current)):
        train(model, wrapper, 12)
    for mine, theirs in zip(optimizer.layers, current.layers, strict=True):
        moments, expected = (
            one.state[layer.weight]["exp_avg"]
            for one, layer in ((optimizer, mine), (current, theirs))
        )
        assert torch.equal(moments, expected)
        assert moments.shape == ((mine.live,) if mine.density < 1 else mine.weight.shape)


def test_unknown_state_is_refused_by_the_present_names():
    model = make()
    with pytest.raises(ValueError, match="state='lve' is not known; did you mean 'live'"):
        SparseOptimizer(adamw(model), model, state="lve", **SETTINGS)
