"""Many layers are stepped as one parameter, with the same result as one by one."""

import copy
import os

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.optimizer.state import gather, pools
from sparseopt.optimizer.state.gather import GatherOne
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.nets import make
from tests.support.training import train

CPU = torch.device("cpu")
SETTINGS = {"method": "static", "density": 0.3, "init": "uniform", "seed": 3, "state": "live"}


class Branches(nn.Module):
    """Two layers; on every third step the second has no gradient, as an expert that is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)

    def set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        used = (True, step % 3 != 0)
        for weight, has in zip(self.parameters(), used, strict=True):
            gradient = torch.randn(weight.shape, generator=generator)
            weight.grad = gradient if has else None


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_layers_that_miss_steps_go_on_as_with_the_plain_optimizer(name):
    """State with one value a parameter, such as the number of steps, is separate for each layer."""
    model, plain_model = Branches(), Branches()
    density = {"first": 0.3, "second": 0.3}
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "init": density})
    plain = build(name, plain_model.parameters())
    masks = [layer.mask for layer in optimizer.layers]
    with torch.no_grad():
        for weight, mask in zip(plain_model.parameters(), masks, strict=True):
            weight.mul_(mask)
    for step in range(1, 9):
        for net in (model, plain_model):
            net.set_gradients(step)
        for weight, mask in zip(plain_model.parameters(), masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask)
        optimizer.step()
        plain.step()
        for mine, theirs, mask in zip(
            model.parameters(), plain_model.parameters(), masks, strict=True
        ):
            torch.testing.assert_close(mine, theirs * mask)
            for key, value in plain.state[theirs].items():
                if torch.is_tensor(value):
                    expected = value if value.dim() == 0 else value[mask]
                    torch.testing.assert_close(optimizer.state[mine][key], expected)


def test_parameters_count_their_own_steps_after_detach():
    model = make()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 3)
    optimizer.detach()
    train(model, inner, 2, start=3)
    assert [float(inner.state[p]["step"]) for p in model.parameters()] == [5.0] * len(
        list(model.parameters())
    )


def test_training_continues_from_state_that_is_loaded_in_place():
    """Distributed checkpoints are read into the tensors of an existing state dict."""
    model = make()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 3, start=3)
    loaded = optimizer.state_dict()
    for index, entry in saved["state"].items():
        # Each parameter has its own number of steps, as in a model that does not use all at once.
        entry["step"] += index
        for key, value in entry.items():
            loaded["state"][index][key].copy_(value)
    optimizer.load_state_dict(loaded)
    train(model, optimizer, 1, start=3)
    steps = [int(optimizer.state[p]["step"]) for p in model.parameters()]
    assert steps == [3 + index + 1 for index in range(len(steps))]


def test_step_count_continues_from_the_value_that_the_user_sets():
    model = make()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 3)
    for p in model.parameters():
        optimizer.state[p]["step"].zero_()
    train(model, optimizer, 2, start=3)
    assert {int(optimizer.state[p]["step"]) for p in model.parameters()} == {2}


@pytest.mark.parametrize("reset", ["conv1.weight", "conv2.weight", "fc2.weight", "fc1.bias"])
def test_step_count_that_the_user_sets_for_one_parameter_is_not_for_the_others(reset):
    models = []
    for state in ("live", "masked"):
        model = make()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "state": state})
        train(model, optimizer, 3)
        optimizer.state[model.get_parameter(reset)]["step"].zero_()
        train(model, optimizer, 2, start=3)
        steps = {name: int(inner.state[p]["step"]) for name, p in model.named_parameters()}
        assert steps == {**dict.fromkeys(steps, 5), reset: 2}
        models.append(model)
    for live, masked in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(live, masked)


def test_state_that_the_user_replaces_or_edits_is_what_the_next_step_starts_from():
    model = make()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 2)
    replaced, edited, *_ = (layer for layer in optimizer.layers if not layer.is_full)
    optimizer.state[replaced.weight]["momentum_buffer"] = torch.ones(replaced.live)
    optimizer.state[edited.weight]["momentum_buffer"].fill_(2.0)
    train(model, optimizer, 1, start=2)
    for layer, before in ((replaced, 1.0), (edited, 2.0)):
        gradient = layer.weight.grad[layer.mask]
        buffer = optimizer.state[layer.weight]["momentum_buffer"]
        torch.testing.assert_close(buffer, 0.5 * before + gradient)


class Masking:
    def __init__(self, mask: torch.Tensor):
        self.mask = mask

    def __call__(self, weight: torch.Tensor) -> None:
        weight.grad.mul_(self.mask)


@pytest.mark.parametrize("limit", [1, 150, 10**6])
def test_size_of_a_pool_changes_nothing(limit, monkeypatch):
    for name in ("CPU_POOL", "CPU_POOL_OF_THREADS"):
        monkeypatch.setattr(pools, name, limit)
    model, plain_model = make(), make()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    plain = torch.optim.AdamW(plain_model.parameters(), lr=0.01)
    optimizer.apply_masks(plain_model)
    weights = dict(plain_model.named_parameters())
    for layer in optimizer.layers:
        weights[layer.name].register_post_accumulate_grad_hook(Masking(layer.mask))
    train(model, optimizer, 6)
    train(plain_model, plain, 6)
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_threads_change_no_bit(monkeypatch):
    """A step writes the same values, whichever thread gathers a layer's weights."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    results = []
    for worth in (1, 10**9):
        monkeypatch.setattr(gather, "WORTH_A_THREAD", worth)
        model = make()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        train(model, SparseOptimizer(inner, model, **SETTINGS), 6)
        results.append([p.detach().clone() for p in model.parameters()])
    assert len(gather.shares(make_parts(), CPU)) == 1
    for threaded, alone in zip(*results, strict=True):
        assert torch.equal(threaded, alone)


def make_parts():
    model = make()
    layers = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **SETTINGS).layers
    return [GatherOne(layer) for layer in layers if not layer.is_full]


def test_shares_hold_every_part_once_and_are_about_equally_heavy(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(gather, "WORTH_A_THREAD", 1)
    parts = make_parts()
    shares = gather.shares(parts, CPU)
    assert len(shares) == 2
    assert sorted(index for share in shares for index in share) == list(range(len(parts)))
    weights = [sum(parts[index].numel for index in share) for share in shares]
    largest = max(part.numel for part in parts)
    assert max(weights) - min(weights) <= largest


def test_error_in_a_thread_reaches_the_caller():
    def fail(index: int) -> None:
        if index == 3:
            raise KeyError(index)

    with pytest.raises(KeyError, match="3"):
        gather.for_each(fail, [[0, 1], [2, 3]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_process_has_threads_of_its_own():
    """A forked process has none of its parent's threads, and must not wait for them."""
    seen: list[int] = []
    gather.for_each(seen.append, [[0], [1]])
    assert sorted(seen) == [0, 1]
    child = os.fork()
    if child == 0:
        gather.for_each(seen.append, [[2], [3]])
        os._exit(0 if sorted(seen) == [0, 1, 2, 3] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_gradients_in_another_precision_than_the_weights(state):
    """``grad_dtype``, as for weights in bfloat16 whose gradients accumulate in float32."""
    runs = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 8)).bfloat16()
        for parameter in model.parameters():
            parameter.grad_dtype = torch.float32
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        if sparse:
            optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "state": state})
            masks = optimizer.masks
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for name, parameter in model.named_parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient * masks[name] if name in masks else gradient
            (optimizer if sparse else inner).step()
        runs.append([parameter.detach().clone() for parameter in model.parameters()])
    for mine, theirs in zip(*runs, strict=True):
        assert torch.equal(mine, theirs)


def test_embedding_whose_gradients_become_sparse_leaves_its_pool():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16, sparse=True)
            self.linear = nn.Linear(16, 64)

        def forward(self, step):
            dense = self.embedding.weight[:8]
            return self.linear(self.embedding(torch.arange(8)) if step > 1 else dense)

    torch.manual_seed(0)
    model = Tokens()
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **SETTINGS)
    plain_model = copy.deepcopy(model)
    plain = torch.optim.SGD(plain_model.parameters(), lr=0.1)
    for step in range(4):
        for one, net in ((optimizer, model), (plain, plain_model)):
            one.zero_grad()
            net(step).square().mean().backward()
            one.step()
        with torch.no_grad():
            plain_model.linear.weight.mul_(optimizer.masks["linear.weight"])
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
