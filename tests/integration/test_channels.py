"""Full channels across processes, and in compiled models."""

import copy
import warnings
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sparseopt import RigLStruct, SparseOptimizer, find_channel_groups
from tests.support.catalogue import build
from tests.support.channel_nets import INPUT, ChannelNet
from tests.support.compiled import Counting
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import loss_of, make
from tests.support.ranks import needs_gloo, two_ranks
from tests.support.training import train, train_step

STEPS = 16
SETTINGS = {"density": 0.3, "total_steps": 40, "delta_t": 3, "alpha": 0.6}


def wrap(model, name="AdamW", **settings):
    groups = find_channel_groups(make(ChannelNet), INPUT)
    return SparseOptimizer(
        build(name, model.parameters()), model, method=RigLStruct(groups=groups), **settings
    )


def train_on_ranks(optimizer_first):
    """Masks after each step, and the weights at the end, of a rank with its own seed and data."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = make(ChannelNet, seed=rank)
    parallel = None if optimizer_first else DistributedDataParallel(model)
    if optimizer_first:
        for p in model.parameters():
            dist.broadcast(p.data, 0)
    optimizer = wrap(parallel or model, **SETTINGS)
    parallel = parallel or DistributedDataParallel(model)
    masks = []
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(parallel, 100 * rank + t).backward()
        optimizer.step()
        masks.append({name: mask.clone() for name, mask in optimizer.masks.items()})
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"masks": masks, "weights": weights, "new": [r.new for r in optimizer.history]}


@cache
def seen_by_both(optimizer_first):
    return two_ranks().run(train_on_ranks, optimizer_first)


@needs_gloo
@pytest.mark.parametrize("optimizer_first", [False, True])
def test_ranks_have_the_same_channels_at_all_times(optimizer_first):
    first, second = seen_by_both(optimizer_first)
    for mine, theirs in zip(first["masks"], second["masks"], strict=True):
        assert all(torch.equal(mask, theirs[name]) for name, mask in mine.items())
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    assert max(first["new"]) > 0


def shard_on_ranks():
    """The errors for weights that are sharded before and after the optimizer is made."""
    said = []
    sharded = fully_shard(make(ChannelNet))
    try:
        wrap(sharded, seed=3, **SETTINGS)
    except TypeError as error:
        said.append(str(error))
    later = make(ChannelNet)
    optimizer = wrap(later, seed=3, **{**SETTINGS, "delta_t": 1})
    fully_shard(later)
    for group in optimizer.param_groups:
        group["params"][:] = list(later.parameters())
    try:
        train_step(later, optimizer, 1)
    except TypeError as error:
        said.append(str(error))
    return said


@needs_gloo
def test_sharded_weights_are_refused_by_name():
    for said in two_ranks().run(shard_on_ranks):
        assert len(said) == 2
        assert all("'stem.weight' is sharded" in words for words in said)


@pytest.mark.parametrize("compiled_first", [False, True])
def test_compiled_model_trains_as_an_eager_one_does(compiled_first):
    torch.compiler.reset()
    model, plain = make(ChannelNet), make(ChannelNet)
    backend = Counting()
    if compiled_first:
        compiled = torch.compile(model, backend=backend)
        optimizer = wrap(compiled, seed=3, **SETTINGS)
    else:
        optimizer = wrap(model, seed=3, **SETTINGS)
        compiled = torch.compile(model, backend=backend)
    reference = wrap(plain, seed=3, **SETTINGS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for t in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss_of(compiled, t).backward()
            optimizer.step()
            train_step(plain, reference, t)
            if t == 3:
                graphs = backend.graphs
    assert backend.graphs == graphs
    assert max(record.new for record in optimizer.history) > 0
    assert [record.new for record in optimizer.history] == [r.new for r in reference.history]
    for layer, other in zip(optimizer.layers, reference.layers, strict=True):
        assert torch.equal(layer.mask, other.mask)
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_channels_grow_under_autocast_too():
    model = make(ChannelNet)
    optimizer = wrap(model, seed=3, **SETTINGS)
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, t)
        loss.backward()
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert max(record.new for record in optimizer.history) > 0


def test_averaged_copy_loses_the_channels_that_are_dropped_now():
    model = make(ChannelNet)
    optimizer = wrap(model, seed=3, **SETTINGS)
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, STEPS, after=lambda _: average.update_parameters(model))
    optimizer.apply_masks(average)
    for name, p in average.module.named_parameters():
        if name in optimizer.masks:
            assert not p[~optimizer.masks[name]].any()


def test_optimizer_that_is_gone_leaves_a_model_without_hooks():
    model = make(ChannelNet)
    optimizer = wrap(model, seed=3, **SETTINGS)
    train(model, optimizer, 2)
    del optimizer
    before = copy.deepcopy(model.state_dict())
    loss_of(model.eval(), 3)
    assert not model._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def magnitude_on_ranks():
    model = make(ChannelNet, seed=dist.get_rank())
    return wrap(model, mask="magnitude", **SETTINGS).masks


@needs_gloo
def test_ranks_with_other_weights_have_the_first_ones_largest_channels():
    first, second = two_ranks().run(magnitude_on_ranks)
    alone = wrap(make(ChannelNet, seed=0), mask="magnitude", **SETTINGS).masks
    for name, mask in alone.items():
        assert torch.equal(first[name], mask)
        assert torch.equal(second[name], mask)
