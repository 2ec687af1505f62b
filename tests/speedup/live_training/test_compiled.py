"""``torch.compile`` of a model that is sped up: no graph breaks, and no new graph for new masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import speed_up
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    DenseLayer,
    Tokens,
    full_plan,
    images,
    labels,
    make,
    train,
    wrap,
)

pytestmark = [needs_kernels, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
def test_compiled_training_goes_the_same_way_in_whole_graphs(kind):
    graphs = []

    def counting(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    runs = []
    for fast in (False, True):
        model = make(kind)
        optimizer = wrap(model, method="rigl")
        if fast:
            speed_up(model, optimizer, plan=full_plan(model, optimizer))
            compiled = torch.compile(model, backend=counting, fullgraph=True)
        else:
            compiled = model
        runs.append((train(compiled, optimizer, 17), optimizer.masks))
    (losses, masks), (fast_losses, fast_masks) = runs
    assert fast_losses[:5] == pytest.approx(losses[:5], rel=1e-3)
    for name, mask in masks.items():
        assert torch.equal(mask, fast_masks[name])
    # One graph for ordinary steps and one for update steps, for all masks.
    assert len(graphs) == 2
    has_kernels = [any("sparseopt" in target for target in targets) for targets in graphs]
    assert sorted(has_kernels) == [False, True]


class ConcatenatesAfterAPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.part, self.last = nn.Conv2d(3, 7, 3), DenseLayer(7, 5), nn.Conv2d(19, 5, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(torch.cat([x, self.part(x)], 1)).mean((2, 3))


# A compiled part whose input has a history.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_part_of_a_model_that_concatenates_can_be_compiled():
    """The mode that keeps the layout in ``torch.cat`` is left out of the graph."""
    model = make(ConcatenatesAfterAPart)
    optimizer = wrap(model, method="static", init="uniform")
    plan = full_plan(model, optimizer)
    plain = copy.deepcopy(model)
    model.part.compile(backend="eager", fullgraph=True)
    speed_up(model, optimizer, plan=plan)
    for index in range(2):
        torch.testing.assert_close(model(images(index)), plain(images(index)))


def test_speed_up_before_and_after_compiling_trains_with_inductor():
    model = make()
    optimizer = wrap(model, method="rigl")
    plan = full_plan(model, optimizer)
    compiled = torch.compile(model)
    handle = speed_up(compiled, optimizer, plan=plan)
    plain = copy.deepcopy(model)
    torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-3, atol=1e-4)
    losses = train(compiled, optimizer, 12)
    assert losses[-1] < 2.5
    assert handle.is_active


def gradients(call, model, index=0):
    model.zero_grad()
    F.cross_entropy(call(images(index)), labels(index)).backward()
    return {name: one.grad for name, one in model.named_parameters()}


def compiled_pair(plan_of, **settings):
    """Two equal models and their optimizers; the second is sped up and compiled."""
    pair = [make(), make()]
    wrappers = [wrap(one, **settings) for one in pair]
    speed_up(pair[1], wrappers[1], plan=plan_of(pair[1], wrappers[1]))
    return pair, wrappers, torch.compile(pair[1], backend="eager", fullgraph=True)


@pytest.mark.parametrize("init", ["erk", "uniform"])
def test_first_pass_of_a_convolution_with_all_its_weights_may_be_compiled(init):
    (plain, fast), _, compiled = compiled_pair(
        lambda model, optimizer: {
            **full_plan(model, optimizer),
            "stem": {"6x3x9x9": "full"},
        },
        method="static",
        init=init,
    )
    expected = gradients(plain, plain)
    for name, gradient in gradients(compiled, fast).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_masks_that_are_set_take_effect_in_the_next_compiled_pass():
    (plain, fast), wrappers, compiled = compiled_pair(full_plan, method="static")
    gradients(compiled, fast)
    for model, optimizer in zip((plain, fast), wrappers, strict=True):
        optimizer.set_masks({name: mask.flip(0) for name, mask in optimizer.masks.items()})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameter.new_full((), 0.1) * optimizer.masks.get(name, True))
    expected = gradients(plain, plain)
    for name, gradient in gradients(compiled, fast).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_compiled_evaluation_takes_weights_as_they_are():
    """A swapped-in average is not masked, and a compiled graph cannot check this."""
    model = make()
    optimizer = wrap(model, method="static")
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for layer in optimizer.layers:
        layer.weight.data.add_(0.01)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images()), plain.eval()(images()))


def test_measurement_is_left_out_of_a_compiled_model():
    model = make()
    optimizer = wrap(model, method="rigl")
    handle = speed_up(model, optimizer)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    train(compiled, optimizer, 3)
    assert handle.plan == {}


def test_exported_graph_is_that_of_the_plain_model():
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    plain = copy.deepcopy(model).eval()
    exported = torch.export.export(model.eval(), (images(),))
    assert "sparseopt" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(images()), plain(images()))
