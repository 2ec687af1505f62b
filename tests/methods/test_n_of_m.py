"""N:M: exactly N of every M neighbours along the inputs, before, during and after training."""

import numpy as np
import pytest
import torch
from torch import nn

from sparseopt import NM, Smoothed, SparseOptimizer
from tests import oracle
from tests.support.agreement import run_against_oracle
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, logical
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train
from tests.support.wrapping import wrap

STEPS = 40
SETTINGS = {"density": 0.5, "total_steps": STEPS, "delta_t": 4, "seed": 3, "init": {}}


def shapes_of(model):
    params = dict(model.named_parameters())
    return {name: tuple(params[name].shape) for name in SPARSE_NAMES}


def wrapped(
    method, name="SGD", state="auto", *, n=2, m=4, dtype=torch.float32, channels_last=False
):
    model = make(dtype=dtype, channels_last=channels_last)
    optimizer = wrap(model, name, method=method, state=state, **SETTINGS)
    generator = oracle.generator_of(SETTINGS["seed"])
    masks = {}
    for layer, shape in shapes_of(model).items():
        numel = int(np.prod(shape))
        if shape[1] % m:
            masks[layer] = np.ones(numel, dtype=bool)
            continue
        scores = torch.rand(numel, generator=generator).numpy()
        masks[layer] = oracle.best_n_of_m(scores, shape, n, m)
    reference = oracle.NMOracle(
        masks,
        shapes_of(model),
        m,
        delta_t=4,
        t_end=oracle.default_t_end(STEPS),
        alpha=0.3,
        regrow=getattr(method, "regrow", "keep"),
    )
    return model, optimizer, reference


def assert_n_of_m(optimizer, n, m):
    for layer in optimizer.layers:
        shape, mask = tuple(layer.weight.shape), logical(layer.mask)
        if shape[1] % m:
            assert mask.all()
            continue
        for group in oracle.groups(shape, m):
            assert mask[group].sum() == n


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, dtype, channels_last, state):
    model, optimizer, reference = wrapped(
        "n:m", name, state, dtype=dtype, channels_last=channels_last
    )
    first = {layer: mask.copy() for layer, mask in reference.masks.items()}
    assert run_against_oracle(model, optimizer, reference, STEPS) == 7
    assert_n_of_m(optimizer, 2, 4)
    assert any((first[layer] != mask).mean() > 0.1 for layer, mask in reference.masks.items())


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_groups_that_grow_by_a_smoothed_gradient_agree_with_the_oracle(beta):
    model, optimizer, plain = wrapped(NM(gradient=Smoothed(beta)))
    reference = oracle.grow_by_momentum(plain, beta)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 7


@pytest.mark.parametrize("method", [NM(regrow="zero"), NM(regrow="never")])
def test_other_ways_to_regrow_agree_with_the_oracle(method):
    model, optimizer, reference = wrapped(method, "AdamW")
    assert run_against_oracle(model, optimizer, reference, STEPS) == 7
    assert_n_of_m(optimizer, 2, 4)


def test_every_group_keeps_its_number_at_every_step():
    model, optimizer, _ = wrapped("n:m")
    assert_n_of_m(optimizer, 2, 4)

    def check(_):
        assert_n_of_m(optimizer, 2, 4)
        assert_dropped_are_fresh(optimizer)

    train(model, optimizer, STEPS, after=check)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (3, 4), (4, 8)])
def test_ratios_of_all_kinds_are_kept(n, m):
    model = make()
    optimizer = wrap(model, method=NM(n=n, m=m), **{**SETTINGS, "density": n / m})
    train(model, optimizer, 20)
    assert_n_of_m(optimizer, n, m)
    assert optimizer.history[-1].grown > 0


def test_magnitude_keeps_the_largest_of_each_group():
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -9, 2, 3, 0.1, 0.2, 0.2, 0.2]]))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters()), model, method="n:m", mask="magnitude", **SETTINGS
    )
    assert optimizer.masks["0.weight"].int().tolist() == [[0, 1, 0, 1, 0, 1, 1, 0]]


def test_layers_that_init_makes_dense_stay_dense():
    model = make()
    settings = {**SETTINGS, "init": {"fc1": 1.0}}
    optimizer = wrap(model, method="n:m", **settings)
    assert {layer.name: layer.density for layer in optimizer.layers} == {
        "conv1.weight": 1.0,
        "conv2.weight": 0.5,
        "fc1.weight": 1.0,
        "fc2.weight": 0.5,
    }


def test_another_density_is_refused():
    model = make()
    inner = build("SGD", model.parameters())
    with pytest.raises(ValueError, match=r"density=0\.2.*density=0\.5"):
        SparseOptimizer(inner, model, method="n:m", **{**SETTINGS, "density": 0.2})


def test_another_density_of_a_param_group_is_refused():
    model = make()
    groups = [
        {"params": model.fc1.parameters(), "density": 0.1},
        {"params": model.fc2.parameters(), "density": 1.0},
    ]
    with pytest.raises(ValueError, match=r"density=0\.1.*density=0\.5"):
        SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, method="n:m", **SETTINGS)
    groups[0]["density"] = 0.5
    optimizer = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, method="n:m", **SETTINGS)
    assert {layer.name: layer.density for layer in optimizer.layers} == {
        "fc1.weight": 0.5,
        "fc2.weight": 1.0,
    }


def test_masks_of_another_structure_are_refused():
    model = make()
    mask = torch.zeros(16, 72, dtype=torch.bool)
    mask[:, ::4] = True
    with pytest.raises(ValueError, match=r"fc1\.weight.*structure"):
        wrap(model, method="n:m", mask={"fc1": mask}, **SETTINGS)
    mask[:, 1::4] = True
    optimizer = wrap(model, method="n:m", mask={"fc1": mask}, **SETTINGS)
    assert torch.equal(optimizer.masks["fc1.weight"], mask)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n": 4, "m": 4}, "m=4"),
        ({"n": 0}, "n=0"),
        ({"n": 3, "m": 4, "regrow": "never"}, "never"),
    ],
)
def test_wrong_arguments_raise_an_error(settings, words):
    with pytest.raises(ValueError, match=words):
        NM(**settings)
