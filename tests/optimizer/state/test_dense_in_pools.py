"""Small dense parameters are stepped together with live weights, as if stepped alone."""

import copy

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.optimizer.state import gather
from tests.support.arithmetic import place_does_not_matter
from tests.support.catalogue import ELEMENTWISE, build

DENSITIES = {"first": 0.2, "second": 0.5, "head": 1.0}


class Net(nn.Module):
    """Sparse layers with biases, a dense head, a scalar, a column in its own layout, a table."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(17, 13)
            self.second = nn.Linear(13, 11)
            self.head = nn.Linear(11, 5)
            self.scale = nn.Parameter(torch.randn(()))
            self.gaps = nn.Parameter(torch.randn(7, 4)[:, 1:3])
            self.table = nn.Parameter(torch.randn(70, 80))
        assert self.table.numel() > gather.CPU_SMALL
        self.to(dtype)

    def set_gradients(self, step: int, *, without: tuple[str, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(step)
        for name, weight in self.named_parameters():
            gradient = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weight.grad = None if name in without else gradient


def wrapped(net, inner):
    settings = {"method": "static", "state": "live", "seed": 3, "init": DENSITIES}
    return SparseOptimizer(inner, net, **settings)


def parameters_of(net, groups):
    """All in one group, or weights and 1-D parameters in two groups, as for weight decay."""
    parameters = list(net.parameters())
    if groups == 1:
        return parameters
    matrices = [p for p in parameters if p.ndim > 1]
    return [{"params": matrices}, {"params": [p for p in parameters if p.ndim <= 1]}]


def masked_twin(net, optimizer, inner_of):
    """A copy with the same masks, a plain optimizer over it, and the masks by parameter."""
    twin = copy.deepcopy(net)
    for p in twin.parameters():
        # The hooks that mask gradients came along.
        p._post_accumulate_grad_hooks = None
    masks = {layer.weight: layer.mask for layer in optimizer.layers}
    return twin, inner_of(twin), [masks.get(p) for p in net.parameters()]


def step_both(step, net, optimizer, twin, plain, masks, without=()):
    for model in (net, twin):
        model.set_gradients(step, without=without)
    for p, mask in zip(twin.parameters(), masks, strict=True):
        if mask is not None and p.grad is not None:
            p.grad = torch.where(mask, p.grad, 0.0)
    optimizer.step()
    plain.step()


def assert_the_same(net, optimizer, twin, plain, masks):
    """Weights, and state in a plain optimizer's form, are equal bit for bit."""
    for mine, theirs, mask in zip(net.parameters(), twin.parameters(), masks, strict=True):
        assert torch.equal(mine, theirs if mask is None else torch.where(mask, theirs, 0.0))
        entry, expected = optimizer.state.get(mine, {}), plain.state.get(theirs, {})
        assert list(entry) == list(expected)
        for key, value in expected.items():
            if mask is None or mask.all() or not torch.is_tensor(value) or value.dim() == 0:
                assert torch.equal(torch.as_tensor(entry[key]), torch.as_tensor(value)), key
                assert type(entry[key]) is type(value)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("how", [{}, {"foreach": True}])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_dense_weights_in_pools_equal_those_stepped_alone(name, how, groups):
    if not place_does_not_matter(name, how, torch.float32):
        pytest.skip("by torch's own arithmetic the place of an entry matters")
    net = Net()
    optimizer = wrapped(net, build(name, parameters_of(net, groups), **how))
    twin, plain, masks = masked_twin(
        net, optimizer, lambda twin: build(name, parameters_of(twin, groups), **how)
    )
    for step in range(1, 7):
        step_both(step, net, optimizer, twin, plain, masks)
        assert_the_same(net, optimizer, twin, plain, masks)


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_parameter_that_misses_steps_counts_its_own(name):
    net = Net()
    optimizer = wrapped(net, build(name, net.parameters()))
    twin, plain, masks = masked_twin(net, optimizer, lambda twin: build(name, twin.parameters()))
    absent = [(), ("first.bias",), ("first.bias", "head.weight"), (), ("second.weight",), ()]
    for step, without in enumerate(absent, 1):
        step_both(step, net, optimizer, twin, plain, masks, without)
        assert_the_same(net, optimizer, twin, plain, masks)


def share_memory(optimizer, *parameters):
    """Whether the state of all parameters lies in one piece of memory."""
    pieces = {optimizer.state[p]["exp_avg"].untyped_storage().data_ptr() for p in parameters}
    return len(pieces) == 1


def test_small_network_is_one_parameter_to_the_inner_optimizer():
    """Each parameter costs a dozen calls, which take longer than the arithmetic."""
    net = nn.Sequential(nn.Linear(17, 64), nn.Linear(64, 64), nn.Linear(64, 6))
    seen = []
    inner = torch.optim.Adam(net.parameters())
    optimizer = SparseOptimizer(inner, net, method="static", density=0.1)
    make_groups = inner._init_group
    inner._init_group = lambda group, *rest: (
        seen.append(len(group["params"])),
        make_groups(group, *rest),
    )[1]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(3):
        optimizer.step()
    assert seen == [1, 1, 1]
    assert share_memory(optimizer, *net.parameters())


@pytest.mark.parametrize(("dtype", "how"), [(torch.float32, {"fused": True}), (torch.bfloat16, {})])
def test_parameters_whose_last_bit_depends_on_the_place_are_stepped_alone(dtype, how):
    net = Net(dtype)
    optimizer = wrapped(net, build("AdamW", net.parameters(), **how))
    twin, plain, masks = masked_twin(
        net, optimizer, lambda twin: build("AdamW", twin.parameters(), **how)
    )
    for step in range(1, 7):
        step_both(step, net, optimizer, twin, plain, masks)
    for (name, mine), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        # Torch's fused kernels read the entries in the gaps of a tensor with gaps.
        if name not in ("first.weight", "second.weight", "gaps"):
            assert torch.equal(mine, theirs), name


def test_parameters_have_separate_state_after_detach():
    net = Net()
    inner = build("Adam", net.parameters())
    optimizer = wrapped(net, inner)
    for step in range(1, 3):
        net.set_gradients(step)
        optimizer.step()
    assert share_memory(optimizer, net.first.weight, net.first.bias, net.head.weight)
    before = copy.deepcopy([inner.state[p] for p in (net.first.bias, net.head.weight)])
    optimizer.detach()
    for p, entry in zip((net.first.bias, net.head.weight), before, strict=True):
        for key, value in inner.state[p].items():
            assert torch.equal(value, entry[key])
            assert value.untyped_storage().nbytes() == value.nbytes


def test_dense_state_dict_brings_no_state_along_that_it_does_not_have():
    """A saved view would keep the memory of the pool."""
    net = Net()
    optimizer = wrapped(net, build("Adam", net.parameters()))
    net.set_gradients(1)
    optimizer.step()
    plain = build("Adam", net.parameters())
    plain.load_state_dict(optimizer.dense_state_dict())
    for p in net.parameters():
        for key, value in plain.state[p].items():
            assert value.untyped_storage().nbytes() == value.nbytes, key
    assert torch.equal(
        plain.state[net.first.bias]["exp_avg"], optimizer.state[net.first.bias]["exp_avg"]
    )


def test_parameter_that_misses_a_step_keeps_its_state():
    net = Net()
    inner = build("Adam", net.parameters())
    optimizer = wrapped(net, inner)
    net.set_gradients(1)
    optimizer.step()
    net.set_gradients(2, without=("first.bias",))
    optimizer.step()
    for value in inner.state[net.first.bias].values():
        assert value.untyped_storage().nbytes() == value.nbytes
    assert share_memory(optimizer, net.first.weight, net.second.bias)


def test_state_that_the_user_replaces_or_edits_is_what_the_next_step_starts_from():
    net = Net()
    optimizer = wrapped(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5))
    net.set_gradients(1)
    optimizer.step()
    optimizer.state[net.first.bias]["momentum_buffer"] = torch.ones(13)
    optimizer.state[net.second.bias]["momentum_buffer"].fill_(2.0)
    optimizer.state[net.head.bias]["momentum_buffer"].data = torch.full((5,), 3.0)
    net.set_gradients(2)
    optimizer.step()
    for layer, before in ((net.first, 1.0), (net.second, 2.0), (net.head, 3.0)):
        buffer = optimizer.state[layer.bias]["momentum_buffer"]
        torch.testing.assert_close(buffer, 0.5 * before + layer.bias.grad)


def test_bias_may_move_in_memory_between_steps():
    net, untouched = Net(), Net()
    optimizers = [wrapped(each, build("Adam", each.parameters())) for each in (net, untouched)]
    for step in range(1, 6):
        if step == 3:
            net.first.bias.data = net.first.bias.data.clone()
            net.head.weight.data = net.head.weight.data.t().contiguous().t()
        for each, optimizer in zip((net, untouched), optimizers, strict=True):
            each.set_gradients(step)
            optimizer.step()
    for mine, theirs in zip(net.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, theirs)
