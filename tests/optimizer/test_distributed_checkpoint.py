"""torch.distributed.checkpoint loads an optimizer in one process, as it loads a plain optimizer.

Several ranks are in tests/distributed/.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from sparseopt import SET, CheckpointError, SparseOptimizer
from tests.support.nets import make
from tests.support.resuming import SETTINGS, STEPS, assert_same_run, wrap
from tests.support.training import train

FULL = StateDictOptions(full_state_dict=True)

pytestmark = [pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


def copy_of_state(model, optimizer, options=None):
    """What torch saves, without the tensors that training goes on to change."""
    return copy.deepcopy(get_state_dict(model, optimizer, options=options))


def load_full(saved, model, optimizer):
    weights, state = saved
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=FULL)


def load_sharded(folder, model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    both = {"model": weights, "optimizer": state}
    dcp.load(both, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"]
    )


def save_sharded(folder, model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


@pytest.mark.parametrize("steps_before_loading", [0, 12])
@pytest.mark.parametrize("steps", [0, 3, 12])
def test_full_state_dict_continues_the_run(steps, steps_before_loading, state):
    """Before the first update and after two, into a fresh optimizer and one with a history."""
    model = make()
    optimizer = wrap(model, method="set", state=state)
    train(model, optimizer, steps)
    saved = copy_of_state(model, optimizer, FULL)
    other_model = make(seed=9)
    other = wrap(other_model, method="set", state=state, seed=17)
    train(other_model, other, steps_before_loading)
    load_full(saved, other_model, other)
    assert_same_run(model, optimizer, other_model, other)
    train(model, optimizer, STEPS - steps, start=steps)
    train(other_model, other, STEPS - steps, start=steps)
    assert_same_run(model, optimizer, other_model, other)
    assert len(other.history) == 3


@dataclass(frozen=True)
class Counting(SET):
    """Its state of the run changes its kind and its shape in training."""

    name = "counting"

    def initial_run_state(self):
        return {"dropped": None, "largest": float("-inf")}

    def moves(self, layers, update):
        moves = super().moves(layers, update)
        update.run_state["dropped"] = torch.tensor([move.drop for move in moves])
        update.run_state["largest"] = max(update.run_state["largest"], update.fraction)
        return moves


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_state_of_the_run_comes_back_with_another_kind_and_shape(kind, tmp_path):
    model = make()
    optimizer = wrap(model, method=Counting())
    train(model, optimizer, 7)
    other_model = make(seed=9)
    other = wrap(other_model, method=Counting())
    if kind == "full":
        load_full(copy_of_state(model, optimizer, FULL), other_model, other)
    else:
        save_sharded(tmp_path, model, optimizer)
        load_sharded(tmp_path, other_model, other)
    kept, loaded = optimizer._updater.state.run, other._updater.state.run
    assert torch.equal(loaded["dropped"], kept["dropped"])
    assert loaded["largest"] == kept["largest"] > 0


def test_no_param_group_has_a_tensor_of_several_values():
    """torch's loader of full state dicts expects all tensors on one device, such as a GPU."""
    optimizer = wrap(make())
    for group in optimizer.state_dict()["param_groups"]:
        for value in [*group.values(), *group.get("sparseopt", {}).values()]:
            assert not torch.is_tensor(value)


@pytest.mark.filterwarnings("ignore:the checkpoint's density is used")
def test_optimizer_of_another_density_refuses_a_checkpoint_whose_masks_were_not_loaded(tmp_path):
    """A dense layer has no mask in the state dict that distributed checkpointing loads into."""
    model = make()
    optimizer = wrap(model, method="set", state="masked")
    train(model, optimizer, 7)
    save_sharded(tmp_path, model, optimizer)
    other_model = make()
    other = wrap(other_model, method="set", state="masked", density=1.0)
    with pytest.raises(CheckpointError, match=r"mask of layer 'conv1\.weight' was not loaded"):
        load_sharded(tmp_path, other_model, other)
    assert other.steps == 0
    assert other.density == 1.0


def stateless(model):
    """SGD without momentum keeps no state; of two more parameters one is unused, one frozen."""
    model.unused = nn.Parameter(torch.ones(3))
    model.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    return SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **SETTINGS)


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_optimizer_without_state_continues_its_run(kind, tmp_path):
    model, other_model = make(), make(seed=9)
    optimizer, other = stateless(model), stateless(other_model)
    train(model, optimizer, 12)
    if kind == "full":
        load_full(copy_of_state(model, optimizer, FULL), other_model, other)
    else:
        save_sharded(tmp_path, model, optimizer)
        load_sharded(tmp_path, other_model, other)
    assert not other.inner.state
    train(model, optimizer, STEPS - 12, start=12)
    train(other_model, other, STEPS - 12, start=12)
    assert_same_run(model, optimizer, other_model, other)
    assert len(other.history) == 3


def test_parameter_without_state_loads_from_a_full_state_dict():
    """AdamW keeps no state for a parameter that no step has used."""
    model, other_model = make(), make(seed=9)
    for one in (model, other_model):
        one.unused = nn.Parameter(torch.ones(3))
    optimizer, other = wrap(model), wrap(other_model)
    train(model, optimizer, 7)
    load_full(copy_of_state(model, optimizer, FULL), other_model, other)
    train(model, optimizer, STEPS - 7, start=7)
    train(other_model, other, STEPS - 7, start=7)
    assert_same_run(model, optimizer, other_model, other)
