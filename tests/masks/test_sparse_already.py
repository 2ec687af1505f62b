"""A warning comes before new masks destroy a model that is sparse already."""

import copy
import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparseopt import NoSparseLayerError, RigLStruct, SparseOptimizer, find_channel_groups
from tests.support.nets import make
from tests.support.training import train, train_step

SETTINGS = {"method": "static", "density": 0.2, "init": {}}
LOST = r"sparse before: .* of the nonzero weights of 'conv1\.weight' .*more layers\) are outside"


def wrap(model, **changes):
    inner = torch.optim.Adam(model.parameters(), lr=0.01)
    return SparseOptimizer(inner, model, **{**SETTINGS, **changes})


def trained(seed=3):
    """A model that was trained sparse, and its optimizer."""
    model = make()
    optimizer = wrap(model, seed=seed)
    train(model, optimizer, 5)
    return model, optimizer


def sparse_model():
    model = make(seed=1)
    model.load_state_dict(trained()[0].state_dict())
    return model


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(before, model):
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name


def test_wrapping_a_loaded_sparse_model_says_what_to_pass():
    model = sparse_model()
    with pytest.warns(UserWarning, match=LOST + r".*mask='nonzero'") as said:
        wrap(model, seed=4)
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("changes", [{}, {"method": "rigl", "total_steps": 1000}])
def test_weights_are_kept_if_the_warning_is_an_error(changes):
    model = sparse_model()
    before = weights_of(model)
    with pytest.raises(UserWarning, match="nonzero"):
        wrap(model, seed=4, **changes)
    assert_same(before, model)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_remedy_keeps_every_weight_and_no_other():
    model = sparse_model()
    before = weights_of(model)
    optimizer = wrap(model, mask="nonzero", seed=4)
    assert_same(before, model)
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, before[name] != 0)


def test_loading_the_model_alone_after_wrapping_is_warned_of_at_the_first_step(state):
    loaded = sparse_model().state_dict()
    model = make(seed=1)
    optimizer = wrap(model, seed=4, state=state)
    model.load_state_dict(loaded)
    with pytest.warns(UserWarning, match=r"Load the optimizer's state dict too") as said:
        train_step(model, optimizer, 1)
    assert len(said) == 1
    assert said[0].filename.endswith("training.py")
    train_step(model, optimizer, 2)


def test_loading_the_model_alone_loses_nothing_where_the_warning_is_an_error(state):
    loaded = sparse_model().state_dict()
    model = make(seed=1)
    optimizer = wrap(model, seed=4, state=state)
    model.load_state_dict(loaded)
    with pytest.raises(UserWarning, match="nonzero"):
        train_step(model, optimizer, 1)
    assert_same(loaded, model)


def test_model_and_optimizer_loaded_after_wrapping_go_on_without_a_warning(state):
    model, optimizer = trained()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = make(seed=1)
    resumed = wrap(other, seed=4, state=state)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(model, optimizer, 5, start=5)
    train(other, resumed, 5, start=5)
    assert_same(weights_of(model), other)


def test_restoring_the_model_then_wrapping_then_the_optimizer_warns_and_loses_nothing():
    """The order of Lightning: the warning says that nothing is lost, and nothing is."""
    model, optimizer = trained()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = make(seed=1)
    other.load_state_dict(saved[0])
    with pytest.warns(UserWarning, match="its masks replace these and nothing is lost"):
        resumed = wrap(other, seed=4)
    resumed.load_state_dict(saved[1])
    train(model, optimizer, 5, start=5)
    train(other, resumed, 5, start=5)
    assert_same(weights_of(model), other)


def test_dense_pretrained_weights_are_no_matter_in_either_order():
    pretrained = make(seed=5).state_dict()
    model = make()
    model.load_state_dict(pretrained)
    train(model, wrap(model), 2)
    model = make()
    optimizer = wrap(model)
    model.load_state_dict(pretrained)
    train(model, optimizer, 2)


def test_masks_by_magnitude_of_weights_that_were_replaced_are_warned_of():
    model = make()
    optimizer = wrap(model, mask="magnitude")
    pretrained = make(seed=5).state_dict()
    model.load_state_dict(pretrained)
    with pytest.raises(UserWarning, match=r"weights were loaded after.*Load them first"):
        train_step(model, optimizer, 1)
    assert_same(pretrained, model)


def test_pruning_with_the_default_mask_says_that_zeros_come_back():
    model = sparse_model()
    before = weights_of(model)
    with pytest.raises(UserWarning, match=r"'conv1\.weight'.*its zeros will be trained.*nonzero"):
        wrap(model, method="pruning", density=0.1, total_steps=100)
    assert_same(before, model)


def test_pruning_further_by_magnitude_is_a_wish():
    model = sparse_model()
    optimizer = wrap(model, mask="magnitude", density=0.1)
    assert optimizer.density == pytest.approx(0.1, abs=0.01)


def test_magnitude_with_another_distribution_drops_weights_beside_zeros_that_it_revives():
    model = sparse_model()
    with pytest.raises(UserWarning, match="mask='nonzero'"):
        wrap(model, mask="magnitude", density=0.2, init="erk")


def test_masks_that_are_named_are_meant_and_others_are_looked_at():
    model = sparse_model()
    masks = {name: torch.rand_like(p) < 0.2 for name, p in model.named_parameters() if p.dim() > 1}
    wrap(copy.deepcopy(model), mask=masks)
    wrap(copy.deepcopy(model), mask={f"module.{name}": mask for name, mask in masks.items()})
    del masks["fc1.weight"]
    with pytest.raises(UserWarning, match=r"'fc1\.weight' are outside"):
        wrap(model, mask=masks, seed=4)


def test_group_that_is_added_later_is_looked_at_too():
    model = sparse_model()
    head = list(model.fc2.parameters())
    rest = [p for p in model.parameters() if not any(p is h for h in head)]
    inner = torch.optim.Adam(rest)
    with pytest.warns(UserWarning, match="nonzero"):
        optimizer = SparseOptimizer(inner, model, **SETTINGS, seed=4)
    before = model.fc2.weight.detach().clone()
    with pytest.raises(UserWarning, match=r"'fc2\.weight' are outside"):
        optimizer.add_param_group({"params": head})
    assert torch.equal(model.fc2.weight, before)
    assert len(inner.param_groups) == 1
    with pytest.warns(UserWarning, match=r"'fc2\.weight' are outside") as said:
        optimizer.add_param_group({"params": head})
    assert said[0].filename == __file__


def test_dead_channels_are_kept_by_magnitude_under_rigl_struct():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3)
    )
    inputs = torch.randn(2, 3, 4, 4)

    def structured(seed=0, **settings):
        return SparseOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            method=RigLStruct(groups=find_channel_groups(model, inputs)),
            density=0.2,
            total_steps=1000,
            seed=seed,
            **settings,
        )

    structured().detach()
    before = weights_of(model)
    with pytest.raises(UserWarning, match="Pass mask='magnitude'"):
        structured(seed=1)
    structured(mask="magnitude")
    assert_same(before, model)


def test_layer_of_zeros_names_the_way_out():
    """LoRA's B and heads that start at zero: no mask can be made of them."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(ValueError, match=r"mask='nonzero'.*'1\.weight' is zero.*density=False"):
        wrap(model, mask="nonzero")
    groups = [
        {"params": model[0].parameters()},
        {"params": model[1].parameters(), "density": False},
    ]
    optimizer = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, mask="nonzero")
    assert list(optimizer.masks) == ["0.weight"]
    masks = {"0.weight": model[0].weight != 0, "1.weight": torch.rand(4, 16) < 0.5}
    assert wrap(model, mask=masks).masks["1.weight"].any()


def test_layer_that_starts_at_zero_is_no_sparse_model():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    nn.init.zeros_(model[1].weight)
    wrap(model)


def spectral(module):
    return parametrizations.spectral_norm(module)


def weight(module):
    return parametrizations.weight_norm(module)


def orthogonal(module):
    return parametrizations.orthogonal(module)


def pruned(module):
    return prune.l1_unstructured(module, "weight", 0.5)


def old_weight(module):
    return nn.utils.weight_norm(module)


def old_spectral(module):
    return nn.utils.spectral_norm(module)


KINDS = {
    spectral: "parametrizations.spectral_norm",
    weight: "parametrizations.weight_norm",
    orthogonal: "parametrizations.orthogonal",
    pruned: "prune (weight_orig)",
    old_weight: "weight_norm (weight_g, weight_v)",
    old_spectral: "spectral_norm (weight_orig)",
}


@pytest.mark.parametrize("parametrize", KINDS, ids=lambda kind: kind.__name__)
def test_weight_that_is_computed_is_named_with_what_computes_it(parametrize, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        computed = parametrize(nn.Linear(8, 8))
    with pytest.raises(NoSparseLayerError) as refused:
        wrap(nn.Sequential(computed))
    assert "'0.weight' is computed by " + KINDS[parametrize] in str(refused.value)
    assert ("prune.remove" in str(refused.value)) == (parametrize is pruned)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = wrap(nn.Sequential(computed, nn.Linear(8, 8)))
    assert list(optimizer.masks) == ["1.weight"]
    (line,) = (one for one in caplog.messages if "computed by" in one)
    assert "'0.weight' is computed by " + KINDS[parametrize] in line


def test_pruned_model_trains_on_as_the_message_says():
    model = nn.Sequential(pruned(nn.Linear(16, 16)))
    prune.remove(model[0], "weight")
    zero = model[0].weight.detach() == 0
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        method="static",
        mask="nonzero",
    )
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight == 0, zero)
    assert optimizer.density == 0.5
