"""What 0.1.0 showed of a layer works, with a warning."""

import copy
import pickle

import pytest
import torch

from sparseopt.masks.layer import PRIVATE, SparseLayer


def layer():
    mask = torch.eye(4, dtype=torch.bool)
    return SparseLayer("w", torch.nn.Parameter(torch.ones(4, 4)), mask, 4)


def test_members_that_are_private_now_work_and_warn_at_the_caller():
    one, tensor = layer(), torch.ones(4, 4)
    with pytest.warns(DeprecationWarning, match="SparseLayer.mask_ is for the optimizer") as caught:
        one.mask_(tensor)
    assert torch.equal(tensor, torch.eye(4))
    assert caught[0].filename == __file__
    for name in PRIVATE:
        with pytest.warns(DeprecationWarning, match=name):
            getattr(one, name)


def test_layer_shows_only_what_users_may_use():
    shown = {name for name in dir(layer()) if not name.startswith("_")}
    assert shown == {
        *("name", "weight", "mask", "mask_version", "target", "live", "numel", "density"),
        *("is_dense", "is_full", "is_sharded", "ever_live", "ever_live_counts"),
        *("last_dropped", "last_grown", "norm_dim", "norm_slices", "droppable"),
        *("positions", "gather", "expand"),
    }
    with pytest.raises(AttributeError, match="'SparseLayer' object has no attribute 'maks'"):
        _ = layer().maks


def test_layer_is_copied_and_pickled():
    for other in (copy.deepcopy(layer()), pickle.loads(pickle.dumps(layer()))):
        assert torch.equal(other.mask, layer().mask)
