"""How much of each layer is live."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from sparseopt import available_distributions, distributions, register_distribution
from sparseopt.distributions import er, erk, uniform
from tests import oracle
from tests.support import wrapping
from tests.support.nets import SPARSE_NAMES, make
from tests.support.published import WideResNet222

ORACLES = {
    "erk": oracle.erk_densities,
    "er": oracle.er_densities,
    "uniform": oracle.uniform_densities,
}

wrap = partial(wrapping.wrap, total_steps=1000)


def weights_of(model):
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


def full_layers(optimizer):
    return {layer.name for layer in optimizer.layers if layer.live == layer.numel}


def assert_counts(optimizer, densities):
    """Exactly round(density * numel) of each layer, in the mask and in the weight."""
    for layer, density in zip(optimizer.layers, densities, strict=True):
        expected = max(1, round(density * layer.weight.numel()))
        assert layer.live == layer.target == int(layer.mask.sum()) == expected, layer.name
        assert int(layer.weight.count_nonzero()) <= expected
        assert layer.numel == layer.weight.numel()
        assert layer.density == pytest.approx(expected / layer.numel)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("init", ["erk", "er", "uniform"])
@pytest.mark.parametrize("network", [WideResNet222, make], ids=["wrn-22-2", "small"])
def test_live_counts_are_those_of_the_oracle(network, init, density):
    model = network()
    optimizer = wrap(model, init=init, density=density)
    shapes = [tuple(p.shape) for p in weights_of(model).values()]
    assert [layer.name for layer in optimizer.layers] == list(weights_of(model))
    assert_counts(optimizer, ORACLES[init](shapes, density))


@pytest.mark.parametrize("init", ["erk", "er"])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5, 0.8])
def test_whole_model_has_the_density_asked_for(init, density):
    """Clipping at 1 without solving again would give .180 for .2 and .416 for .5."""
    model = WideResNet222()
    optimizer = wrap(model, init=init, density=density)
    total = sum(layer.numel for layer in optimizer.layers)
    assert abs(optimizer.density * total - density * total) <= len(optimizer.layers) / 2
    live = sum(int(mask.sum()) for mask in optimizer.masks.values())
    assert optimizer.density == pytest.approx(live / total)


def test_erk_makes_the_layers_dense_that_the_paper_names():
    """First convolution, two shortcuts and the linear layer at .1, the third shortcut too at .2."""
    at_a_tenth = full_layers(wrap(WideResNet222(), init="erk", density=0.1))
    at_a_fifth = full_layers(wrap(WideResNet222(), init="erk", density=0.2))
    stem_and_head = {"conv1.weight", "fc.weight"}
    shortcuts = [f"blocks.{i}.shortcut.weight" for i in (0, 3, 6)]
    assert at_a_tenth == stem_and_head | set(shortcuts[:2])
    assert at_a_fifth == stem_and_head | set(shortcuts)


def test_uniform_keeps_the_first_layer_dense_without_making_up_for_it():
    model = WideResNet222()
    optimizer = wrap(model, init="uniform", density=0.1)
    assert full_layers(optimizer) == {"conv1.weight"}
    for layer in optimizer.layers[1:]:
        assert layer.live == round(0.1 * layer.numel)
    assert optimizer.density > 0.1


@pytest.mark.parametrize(
    ("init", "densities"),
    [
        ({"*": "uniform"}, [1.0, 0.1, 0.1, 0.1]),
        ({"0": "uniform", "1": "uniform", "2": uniform, "3": "uniform"}, [1.0, 0.1, 0.1, 0.1]),
        ({"0": 0.5, "*": "uniform"}, [0.5, 0.1, 0.1, 0.1]),
        ({"3": "uniform"}, [0.1, 0.1, 0.1, 0.1]),
        ({"[12]": "uniform", "[03]": "uniform"}, [1.0, 0.1, 0.1, 0.1]),
    ],
)
def test_uniform_in_a_mapping_keeps_only_the_first_layer_of_the_model_dense(init, densities):
    model = nn.Sequential(*(nn.Linear(10, 10) for _ in range(4)))
    optimizer = wrap(model, init=init, density=0.1)
    assert [layer.density for layer in optimizer.layers] == densities


def test_every_layer_keeps_at_least_one_weight():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 3), nn.Linear(3, 2))
    optimizer = wrap(model, init="uniform", density=0.001)
    assert [layer.live for layer in optimizer.layers] == [10_000, 1, 1]


@pytest.mark.parametrize("key", ["fc1", "fc1.weight"])
def test_mapping_gives_layers_their_own_density(key):
    """Keys name the module or its weight; other layers take `density`."""
    model = make()
    optimizer = wrap(model, init={key: 0.25, "conv2": 0.5}, density=0.3)
    by_name = {layer.name: layer for layer in optimizer.layers}
    assert by_name["fc1.weight"].live == round(0.25 * model.fc1.weight.numel())
    assert by_name["conv2.weight"].live == round(0.5 * model.conv2.weight.numel())
    assert by_name["fc2.weight"].live == round(0.3 * model.fc2.weight.numel())


def test_function_of_shapes_and_density():
    seen = {}

    def halve(shapes, density):
        seen.update(shapes)
        return {name: density / 2 if "conv" in name else density for name in shapes}

    model = make()
    optimizer = wrap(model, init=halve, density=0.4)
    assert {name: tuple(shape) for name, shape in seen.items()} == {
        name: tuple(p.shape) for name, p in weights_of(model).items()
    }
    assert_counts(optimizer, [0.2, 0.2, 0.4, 0.4])


def test_function_that_forgets_a_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        wrap(make(), init=lambda shapes, density: {"fc1.weight": density})


@pytest.mark.parametrize("distribution", [erk, er, uniform])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_distribution_by_itself_refuses_what_is_no_density(distribution, density):
    with pytest.raises(ValueError, match=r"density=.* must be in \(0, 1\]"):
        distribution({"a": (10, 10), "b": (10, 10)}, density)


@pytest.mark.parametrize("init", ["erk", "er", "uniform"])
def test_frozen_layers_take_no_part_in_the_distribution(init):
    model = make()
    model.conv1.weight.requires_grad_(False)
    model.fc2.weight.requires_grad_(False)
    optimizer = wrap(model, init=init, density=0.2)
    assert [layer.name for layer in optimizer.layers] == ["conv2.weight", "fc1.weight"]
    shapes = [tuple(model.conv2.weight.shape), tuple(model.fc1.weight.shape)]
    assert_counts(optimizer, ORACLES[init](shapes, 0.2))


def test_er_counts_a_convolution_by_its_channels_only():
    """ER and ERK differ on kernels and agree on matrices."""
    matrices = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 20), nn.Linear(20, 30))
    er = wrap(matrices, init="er", density=0.3)
    counts = [layer.live for layer in er.layers]
    er.detach()
    erk = wrap(nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 20), nn.Linear(20, 30)), density=0.3)
    assert counts == [layer.live for layer in erk.layers]

    raw = {}
    for init in ("er", "erk"):
        layers = wrap(WideResNet222(), init=init, density=0.05).layers
        by_name = {layer.name: layer for layer in layers}
        three, one = by_name["blocks.4.conv1.weight"], by_name["blocks.7.conv1.weight"]
        raw[init] = three.density / one.density
    assert raw["er"] == pytest.approx((64 + 64) / (64 * 64) * (128 * 128) / (128 + 128), rel=0.01)
    assert raw["erk"] == pytest.approx(
        (64 + 64 + 6) / (64 * 64 * 9) * (128 * 128 * 9) / (128 + 128 + 6), rel=0.01
    )


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_counts_are_exact_for_ever(method):
    """Bernoulli masks drift; exact ones do not."""
    model = make()
    optimizer = wrap(model, method=method, density=0.13, delta_t=1)
    expected = {layer.name: layer.live for layer in optimizer.layers}
    for _ in range(60):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        live = {name: int(mask.sum()) for name, mask in optimizer.masks.items()}
        assert live == {layer.name: layer.live for layer in optimizer.layers} == expected
    assert method == "static" or len(optimizer.history) == 60


def test_oracle_solves_for_the_density():
    """The oracle equals the definition: proportional below 1, and the total as given."""
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]
    densities = oracle.erk_densities(shapes, 0.3)
    total = sum(math.prod(shape) for shape in shapes)
    live = sum(d * math.prod(shape) for d, shape in zip(densities, shapes, strict=True))
    assert live == pytest.approx(0.3 * total)
    ratios = [
        d * math.prod(shape) / sum(shape)
        for d, shape in zip(densities, shapes, strict=True)
        if d < 1
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert len(SPARSE_NAMES) == 4


@pytest.fixture
def _distributions_as_they_were(monkeypatch):
    monkeypatch.setattr(distributions, "_DISTRIBUTIONS", dict(distributions._DISTRIBUTIONS))


@pytest.mark.usefixtures("_distributions_as_they_were")
def test_registered_distribution_is_reached_by_its_name():
    before = available_distributions()

    @register_distribution("by-rows")
    def by_rows(shapes, density):
        return {name: min(1.0, density * shape[0] / 8) for name, shape in shapes.items()}

    model = make()
    optimizer = wrap(model, init="by-rows", density=0.1)
    expected = [min(1.0, 0.1 * p.shape[0] / 8) for p in weights_of(model).values()]
    assert_counts(optimizer, expected)
    assert available_distributions() == (*before, "by-rows")
    with pytest.raises(ValueError, match=r"init='by-row' is not known; did you mean 'by-rows'\?"):
        wrap(make(), init="by-row")


@pytest.mark.usefixtures("_distributions_as_they_were")
@pytest.mark.parametrize(
    ("name", "function", "error", "words"),
    [
        ("erk", lambda shapes, density: {}, ValueError, "name='erk' is taken by <function erk"),
        ("mine", lambda shapes: {}, TypeError, r"'mine', .* must be a function of \(shapes, densi"),
        ("mine", 0.3, TypeError, r"'mine', 0.3, must be a function"),
        (erk, erk, TypeError, r'name=<function erk.* must be a string.*"my-own"'),
        ("", erk, TypeError, r"name='' must be a string"),
    ],
)
def test_object_that_is_not_a_distribution_is_not_registered(name, function, error, words):
    before = available_distributions()
    with pytest.raises(error, match=words):
        register_distribution(name)(function)
    assert available_distributions() == before


def test_result_of_a_distribution_is_checked():
    with pytest.raises(TypeError, match="returned 0.2, but must return a mapping"):
        wrap(make(), init=lambda shapes, density: density)


@pytest.mark.parametrize(
    "init",
    [
        {"0": 0.5, "0.0": 1.0},
        {"0.0": 1.0, "0": 0.5},
        {"0.0.weight": 1.0, "module.0": 0.5},
        {"0.0": 1.0, "0.0.*": 0.25, "*": 0.5},
    ],
)
def test_inner_name_comes_before_that_of_the_module_around_it(init):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4))
    optimizer = wrap(model, init=init, density=0.5)
    assert [layer.density for layer in optimizer.layers] == [1.0, 0.5, 0.5]
