"""`torch.compile` of the model, and of the whole training step.

Graphs are captured for real and run by torch's kernels, so that the numbers equal an eager run.
Everything is compiled once: mask updates are called, not traced.
"""

import copy
import itertools
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support import wrapping
from tests.support.catalogue import build
from tests.support.compiled import Counting
from tests.support.looking import assert_dropped_are_fresh, logical
from tests.support.nets import CLASSES, MatrixNet, batch, make
from tests.support.training import dense_gradients, train_step

pytestmark = [
    # Dynamo looks at everything that passes through a frame.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

STEPS = 16
wrap = partial(wrapping.wrap, name="AdamW")
RUNS = [("set", "live"), ("rigl", "live"), ("rigl", "masked"), ("pruning", "masked")]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.fixture
def backend():
    return Counting()


def step_of(net, optimizer):
    """A full training step, as a user writes it."""

    def train_one(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return train_one


def assert_trains_like_an_eager_run(one_step, model, optimizer, tolerance=None, **settings):
    """Losses, weights, masks and history; after the first step nothing may be compiled."""
    tolerance = tolerance or {}
    eager = make(type(model))
    reference = wrap(eager, **settings)
    for t in range(1, STEPS + 1):
        loss = one_step(*batch(t))
        torch.testing.assert_close(loss, train_step(eager, reference, t), **tolerance)
        torch.compiler.set_stance("fail_on_recompile")
    assert [record.step for record in optimizer.history] == [5, 10, 15]
    assert optimizer.history == reference.history
    for name, mask in reference.masks.items():
        assert torch.equal(optimizer.masks[name], mask), name
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize(("method", "state"), RUNS)
def test_compiled_model_stays_one_graph_and_trains_like_an_eager_model(method, state, backend):
    model = make()
    optimizer = wrap(model, method=method, state=state)
    net = torch.compile(model, backend=backend, fullgraph=True)
    one_step = step_of(net, optimizer)
    assert_trains_like_an_eager_run(one_step, model, optimizer, method=method, state=state)
    assert backend.graphs == 1


@pytest.mark.parametrize(("method", "state"), RUNS)
def test_training_step_is_compiled_once_and_trains_like_an_eager_step(method, state, backend):
    model = make()
    optimizer = wrap(model, method=method, state=state)
    one_step = torch.compile(step_of(model, optimizer), backend=backend)
    assert_trains_like_an_eager_run(one_step, model, optimizer, method=method, state=state)
    assert backend.graphs == 1, "forward is the only part of the step that is a graph"


def test_compiled_step_has_no_more_graph_breaks_than_with_a_plain_optimizer(backend):
    def breaks(optimizer_of):
        torch.compiler.reset()
        model = make()
        explanation = torch._dynamo.explain(step_of(model, optimizer_of(model)))(*batch(1))
        return explanation.graph_break_count

    plain = breaks(lambda model: build("SGD", model.parameters()))
    assert breaks(lambda model: wrap(model, name="SGD")) <= plain


@pytest.mark.parametrize("order", ["compiled first", "wrapped first", "the compiled model wrapped"])
def test_model_and_optimizer_may_be_made_in_any_order(order, backend):
    model = make()
    compiled = torch.compile(model, backend=backend) if order != "wrapped first" else None
    optimizer = wrap(compiled if order == "the compiled model wrapped" else model)
    net = torch.compile(model, backend=backend) if compiled is None else compiled
    assert set(optimizer.masks) == set(wrap(make()).masks)
    assert_trains_like_an_eager_run(step_of(net, optimizer), model, optimizer)
    assert backend.graphs == 1


@pytest.mark.parametrize("what", ["model", "step"])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_compiled_gradients_are_masked_except_on_update_steps_of_rigl(method, what, backend):
    model = make()
    optimizer = wrap(model, method=method)
    net = torch.compile(model, backend=backend) if what == "model" else model

    def compute_gradients(x, y):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()

    if what == "step":
        compute_gradients = torch.compile(compute_gradients, backend=backend)
    for t in range(1, 12):
        expected = dense_gradients(model, t)
        dense = optimizer.is_update_step and method == "rigl"
        compute_gradients(*batch(t))
        for name, p in model.named_parameters():
            gradient = logical(expected[name])
            if name in optimizer.masks and not dense:
                gradient = np.where(logical(optimizer.masks[name]), gradient, 0)
            np.testing.assert_allclose(logical(p.grad), gradient, atol=1e-6, err_msg=f"{name}, {t}")
        optimizer.step()
        torch.compiler.set_stance("fail_on_recompile")
    assert backend.graphs == 1


def test_learning_rate_that_changes_at_every_step_compiles_nothing_again(backend):
    model, eager = make(), make()
    optimizer, reference = wrap(model), wrap(eager)
    schedulers = [
        torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in (optimizer, reference)
    ]
    one_step = torch.compile(step_of(model, optimizer), backend=backend)
    for t in range(1, STEPS + 1):
        one_step(*batch(t))
        train_step(eager, reference, t)
        for scheduler in schedulers:
            scheduler.step()
        torch.compiler.set_stance("fail_on_recompile")
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert backend.graphs == 1


def test_compiled_step_can_read_is_update_step(backend):
    model = make()
    optimizer = wrap(model, name="SGD")

    @torch.compile(backend=backend)
    def train_one(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        updating = optimizer.is_update_step
        optimizer.step()
        return updating

    said = []
    for t in range(1, STEPS + 1):
        said.append(train_one(*batch(t)))
        if t == 2:
            torch.compiler.set_stance("fail_on_recompile")
    assert [t for t, updating in enumerate(said, 1) if updating] == [5, 10, 15]


@pytest.mark.parametrize("name", ["AdamW", "LBFGS"])
def test_closure_evaluates_the_compiled_model_and_not_another(name, backend):
    model, eager = make(), make()
    optimizer, reference = wrap(model, name=name), wrap(eager, name=name)
    net = torch.compile(model, backend=backend, fullgraph=True)

    def closure(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for t in range(1, 12):
        x, y = batch(t)
        optimizer.step(lambda x=x, y=y: closure(x, y))
        if name == "LBFGS":
            train_step(eager, reference, t)
        else:
            reference.step(lambda t=t: _evaluate(eager, reference, t))
        torch.compiler.set_stance("fail_on_recompile")
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert backend.graphs == 1


def _evaluate(model, optimizer, index):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch(index)[0]), batch(index)[1])
    loss.backward()
    return loss


def test_compiling_the_optimizers_step_alone_does_no_harm(state, backend):
    """The step runs as ordinary Python, and nothing in it is compiled."""
    model = make()
    optimizer = wrap(model, state=state)
    compiled_step = torch.compile(optimizer.step, backend=backend)

    def one_step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        compiled_step()
        return loss

    assert_trains_like_an_eager_run(one_step, model, optimizer, state=state)
    assert backend.graphs == 0


def test_compiled_autograd_gives_the_same_numbers_and_survives_mask_updates(backend):
    """The backward graph breaks at every sparse layer, and is compiled once."""
    model = make()
    optimizer = wrap(model)
    # The eager run that it is compared with is not compiled.
    compiled_autograd = torch._dynamo.config.patch(compiled_autograd=True)
    with compiled_autograd:
        compiled_step = torch.compile(step_of(model, optimizer), backend=backend)

    def one_step(x, y):
        with compiled_autograd:
            return compiled_step(x, y)

    torch._dynamo.utils.counters.clear()
    assert_trains_like_an_eager_run(one_step, model, optimizer)
    assert torch._dynamo.utils.counters["compiled_autograd"]["captures"] == 1


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch's default backend needs a C++ compiler",
)
@pytest.mark.parametrize("what", ["model", "step"])
def test_default_backend_trains_like_an_eager_run(what):
    """Inductor adds in another order, so the last digits differ."""
    model = make(MatrixNet)
    optimizer = wrap(model)
    if what == "model":
        one_step = step_of(torch.compile(model, fullgraph=True), optimizer)
    else:
        one_step = torch.compile(step_of(model, optimizer))
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    assert_trains_like_an_eager_run(one_step, model, optimizer, tolerance)


COMPILED = {
    "the model": torch.compile,
    "in place": lambda model, **how: model.compile(**how) or model,
    "a function": lambda model, **how: torch.compile(lambda x: model(x) * 1, **how),
}


def container():
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.ReLU(), nn.Linear(16, CLASSES))


@pytest.mark.parametrize(
    ("how", "root", "dynamic"),
    [
        *itertools.product(COMPILED, ["a user's module", "one of torch's"], [None]),
        ("the model", "a user's module", True),
        ("a function", "one of torch's", True),
    ],
)
def test_flops_has_the_input_of_a_model_that_only_ever_ran_compiled(how, root, dynamic):
    """Recording the input breaks no graph and causes no second compilation."""
    backend = Counting()
    model = make() if root == "a user's module" else container()
    optimizer = wrap(model)
    net = COMPILED[how](model, backend=backend, fullgraph=True, dynamic=dynamic)
    one_step = step_of(net, optimizer)
    for t in range(1, 4):
        one_step(*batch(t))
        torch.compiler.set_stance("fail_on_recompile")
    assert optimizer.flops() == optimizer.flops(model, batch(1)[0])


def test_flops_counts_inside_of_compiled_layers(backend):
    model, other = make(), make()
    optimizer, reference = wrap(model), wrap(other)
    model.fc1.compile(backend=backend, fullgraph=True)
    model.fc2 = torch.compile(model.fc2, backend=backend, fullgraph=True)
    step_of(model, optimizer)(*batch(1))
    step_of(other, reference)(*batch(1))
    assert backend.graphs == 2
    assert optimizer.flops() == reference.flops()


def test_layers_that_were_compiled_one_by_one_keep_their_names_in_checkpoints(backend):
    model, other = make(), make()
    model.fc1 = torch.compile(model.fc1, backend=backend)
    optimizer, plain = wrap(model), wrap(other, seed=8)
    assert list(optimizer.masks) == list(plain.masks)
    for t in range(1, 8):
        step_of(model, optimizer)(*batch(t))
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, mask in optimizer.masks.items():
        assert torch.equal(plain.masks[name], mask)


def test_detached_optimizer_leaves_the_compiled_model_unmasked(backend):
    model = make()
    optimizer = wrap(model)
    net = torch.compile(model, backend=backend)
    one_step = step_of(net, optimizer)
    one_step(*batch(1))
    masks = dict(optimizer.masks)
    optimizer.detach()
    expected = dense_gradients(model, 2)
    model.zero_grad()
    F.cross_entropy(net(batch(2)[0]), batch(2)[1]).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])
    assert any(expected[name][~mask].any() for name, mask in masks.items())
    assert not model._forward_pre_hooks
