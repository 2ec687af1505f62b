"""Which weights are live at the start."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support import wrapping
from tests.support.looking import logical, masks_of
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for

wrap = partial(wrapping.wrap, method="static", seed=None)


def oracle_masks(model, seed, **settings):
    return oracle_for(
        "static", model, density=0.2, total_steps=100, delta_t=100, seed=seed, **settings
    ).masks


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("init", ["erk", "er", "uniform"])
def test_random_masks_are_those_of_the_oracle(init, channels_last, device):
    model = make(device=device, channels_last=channels_last)
    optimizer = wrap(model, seed=7, init=init)
    for name, expected in oracle_masks(model, 7, init=init).items():
        np.testing.assert_array_equal(logical(optimizer.masks[name]), expected, err_msg=name)
        assert optimizer.masks[name].device == model.conv1.weight.device
        assert optimizer.masks[name].dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_masks_depend_on_the_seed_only(dtype):
    """Masks do not depend on dtype, memory format, weights or earlier random numbers."""
    reference = masks_of(wrap(make(), seed=7))
    torch.rand(17)
    other = masks_of(wrap(make(seed=9, dtype=dtype, channels_last=True), seed=7))
    another = masks_of(wrap(make(), seed=8))
    for name in SPARSE_NAMES:
        np.testing.assert_array_equal(reference[name], other[name])
    assert any((reference[name] != another[name]).any() for name in SPARSE_NAMES)


def test_seed_is_torchs_initial_seed_by_default():
    torch.manual_seed(11)
    torch.rand(5)
    from_global = masks_of(wrap(make()))
    from_argument = masks_of(wrap(make(), seed=11))
    for name in SPARSE_NAMES:
        np.testing.assert_array_equal(from_global[name], from_argument[name])


def test_construction_draws_no_number_from_torchs_own_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    wrap(make())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [None, 3], ids=["no seed", "the seed of the weights"])
def test_random_masks_have_nothing_to_do_with_the_weights_that_the_same_seed_gave(seed):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(500, 500, bias=False), torch.nn.Linear(500, 500, bias=False)
    )
    torch.nn.init.kaiming_normal_(model[1].weight)
    before = [layer.weight.detach().clone() for layer in model]
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", density=0.1, init="er", seed=seed)
    for layer, weight in zip(optimizer.layers, before, strict=True):
        live = weight[layer.mask]
        # Of 25,000 independent draws the share strays by .003, and the mean by less than .01.
        assert abs((live > 0).float().mean() - 0.5) < 0.02
        assert abs(live.abs().mean() / weight.abs().mean() - 1) < 0.04


def test_construction_zeroes_the_dropped_weights_and_keeps_the_live_ones():
    model, untouched = make(), make()
    optimizer = wrap(model, seed=7)
    for (name, p), original in zip(model.named_parameters(), untouched.parameters(), strict=True):
        expected = original
        if name in optimizer.masks:
            expected = torch.where(optimizer.masks[name], original, 0.0)
        assert torch.equal(p, expected), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitude_keeps_the_largest_weights(dtype, channels_last):
    """Ties go to the lowest logical index, as everywhere."""
    model = make(dtype=dtype, channels_last=channels_last)
    before = {name: np.abs(logical(p)) for name, p in model.named_parameters()}
    optimizer = wrap(model, mask="magnitude")
    for layer in optimizer.layers:
        order = np.argsort(-before[layer.name], kind="stable")
        expected = np.zeros(layer.numel, dtype=bool)
        expected[order[: layer.live]] = True
        np.testing.assert_array_equal(logical(layer.mask), expected, err_msg=layer.name)
        assert layer.live == layer.target


def test_nonzero_takes_the_sparsity_that_is_there():
    """A model that is already sparse keeps its zeros for any density that is passed."""
    model = make()
    pattern = {name: torch.rand(p.shape) < 0.3 for name, p in model.named_parameters()}
    with torch.no_grad():
        for name in SPARSE_NAMES:
            weight = dict(model.named_parameters())[name]
            weight.copy_(torch.where(pattern[name], weight, 0.0))
    optimizer = wrap(model, mask="nonzero")
    for layer in optimizer.layers:
        assert torch.equal(layer.mask, pattern[layer.name]), layer.name
        assert layer.live == int(pattern[layer.name].sum())


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_mapping_of_masks_is_taken_as_it_is(suffix):
    model = make()
    weights = dict(model.named_parameters())
    given = {
        name.removesuffix(".weight") + suffix: torch.rand(weights[name].shape) < 0.4
        for name in SPARSE_NAMES
    }
    optimizer = wrap(model, mask=given)
    for name in SPARSE_NAMES:
        expected = given[name.removesuffix(".weight") + suffix]
        assert torch.equal(optimizer.masks[name], expected)
        assert not weights[name][~expected].any()


@pytest.mark.parametrize("key", ["fc1", "module.fc1.weight"])
def test_two_masks_for_one_layer_are_refused(key):
    model = make()
    weight = model.fc1.weight.detach().clone()
    mask = torch.rand(weight.shape) < 0.4
    with pytest.raises(ValueError, match=rf"two masks for layer 'fc1\.weight', because '{key}'"):
        wrap(model, mask={"fc1.weight": mask, key: ~mask})
    assert torch.equal(model.fc1.weight, weight)


def test_masks_given_stay_the_callers_own():
    model = make()
    weights = dict(model.named_parameters())
    given = {name: torch.rand(weights[name].shape) < 0.4 for name in SPARSE_NAMES}
    copies = {name: mask.clone() for name, mask in given.items()}
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, mask=given, delta_t=1, total_steps=9
    )
    for _ in range(5):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert len(optimizer.history) == 5
    for name, mask in given.items():
        assert torch.equal(mask, copies[name]), "an update wrote into the caller's mask"


def test_masks_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"fc1"):
        wrap(make(), mask={"fc1.weight": torch.ones(3, 3, dtype=torch.bool)})


def test_mask_without_a_live_weight_is_refused_by_name():
    model = make()
    with pytest.raises(ValueError, match=r"fc1"):
        wrap(model, mask={"fc1.weight": torch.zeros(model.fc1.weight.shape, dtype=torch.bool)})


def test_masks_are_bool_tensors_of_the_weights_shape(device):
    model = make(device=device)
    optimizer = wrap(model)
    for name, mask in optimizer.masks.items():
        weight = dict(model.named_parameters())[name]
        assert (mask.dtype, mask.shape, mask.device) == (torch.bool, weight.shape, weight.device)


def test_layers_of_one_model_get_different_random_masks():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    optimizer = wrap(model, init="er")
    first, second = (layer.mask for layer in optimizer.layers)
    assert not torch.equal(first, second)


@pytest.fixture(params=["dtype", "device"])
def other_default(request):
    if request.param == "dtype":
        torch.set_default_dtype(torch.bfloat16)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def test_masks_are_the_same_whatever_torchs_defaults_are(other_default):
    masks = []
    for plain in (False, True):
        if plain:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        model = torch.nn.Linear(40, 40, dtype=torch.float32, device="cpu")
        model.weight.data = torch.ones(40, 40, dtype=torch.float32, device="cpu")
        optimizer = SparseOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            method="set",
            density=0.2,
            total_steps=100,
            delta_t=1,
            seed=3,
        )
        first = optimizer.masks["weight"]
        model(torch.ones(4, 40, dtype=torch.float32, device="cpu")).sum().backward()
        optimizer.step()
        masks.append((first, optimizer.masks["weight"]))
    for here, there in zip(*masks, strict=True):
        assert torch.equal(here, there)
    assert not torch.equal(*masks[0])
