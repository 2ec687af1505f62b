"""``condense`` for models with computed weights, hooks, or a ``forward()`` that keeps state."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from sparseopt import SparseOptimizer
from sparseopt.speedup import kernels
from sparseopt.speedup.inference.copies import copy_for_inference
from tests.speedup.inference.nets import Residual, live_layers, quickly, settled, sparse_masks
from tests.speedup.stateful import STATES, Counting

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
IMPLEMENTATIONS = [
    "sparse, float32",
    "folded, float32",
    "as it is, float32",
    "frozen TorchScript, float32",
]


def two_layers():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


@needs_kernels
@pytest.mark.parametrize("how", ["prune", "prune twice", "parametrization", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_zeros_of_weights_that_are_computed_from_other_parameters_are_found(times, how):
    times["sparse, float32"] = 1.0
    model = two_layers()
    sparse_masks(model)
    for layer in (model[0], model[2]):
        if how == "parametrization":
            mask = (layer.weight != 0).detach()
            nn.init.ones_(layer.weight)
            parametrize.register_parametrization(layer, "weight", Masked(mask))
        elif how == "weight_norm":
            nn.utils.weight_norm(layer)
        else:
            nn.init.normal_(layer.weight)
            prune.random_unstructured(layer, "weight", 0.8)
            if how == "prune twice":
                prune.l1_unstructured(layer, "weight", 0.2)
    x = torch.randn(4, 32)
    # Now the computed weights have an autograd graph, and torch can't copy such tensors.
    model(x).sum().backward()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    condensed = quickly(model, "nonzero", x)
    assert {layer.chosen for layer in condensed.report.layers} == {"live"}
    assert all(layer.density < 0.3 for layer in condensed.report.layers)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())


@needs_kernels
@pytest.mark.parametrize("key", ["0.weight", "0", "0.weight_orig"])
def test_mask_of_a_pruned_weight_is_given_by_either_name(times, key):
    times["sparse, float32"] = 1.0
    model = two_layers()
    prune.random_unstructured(model[0], "weight", 0.8)
    x = torch.randn(4, 32)
    condensed = quickly(model, {key: model[0].weight_mask.bool()}, x)
    assert [(layer.name, layer.chosen) for layer in condensed.report.layers] == [("0", "live")]


@needs_kernels
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_optimizers_mask_of_a_parameter_applies_to_the_weight_computed_from_it(times, norm):
    times["sparse, float32"] = 1.0
    model = nn.Sequential(norm(nn.Linear(32, 32)), nn.Linear(32, 8))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="static",
        density=0.2,
        sparse={"0": True, "1": True},
    )
    condensed = quickly(model, optimizer, torch.randn(4, 32))
    chosen = {layer.name: layer.chosen for layer in condensed.report.layers}
    assert chosen == {"0": "live", "1": "live"}


def test_copy_does_not_change_the_parametrizations_of_the_model():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.LSTM(8, 8))
    parametrizations.weight_norm(model[1], "weight_hh_l0")
    copied = copy_for_inference(model)
    assert type(copied[0]) is nn.Linear
    assert torch.equal(copied[0].weight, model[0].weight)
    x = torch.randn(5, 2, 8)
    with torch.no_grad():
        torch.testing.assert_close(copied(x)[0], model(x)[0])
        nn.init.zeros_(model[1].parametrizations.weight_hh_l0.original1)
        model[0].parametrizations.weight.original.mul_(2)
        assert not torch.equal(copied(x)[0], model(x)[0])


def test_report_says_that_no_weight_has_zeros():
    report = quickly(two_layers(), "nonzero", torch.randn(4, 32)).report
    assert "sparse is not available: the masks drop no weight" in str(report)


class Counts(nn.Module):
    """Counts its calls, and keeps the mean of its last input."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.layer = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(16))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
            self.last.copy_(x.mean(0))
        else:
            self.calls = self.calls + 1
            self.last = x.mean(0)
        return self.layer(x) + self.calls


@pytest.mark.parametrize("fastest", IMPLEMENTATIONS)
@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_that_forward_writes_to_are_written_at_each_call(times, fastest, in_place):
    times[fastest] = 1.0
    model = Counts(in_place)
    masks, x = sparse_masks(model), torch.randn(4, 16)
    model(x)
    condensed = quickly(model, masks, x)
    assert "forward() writes 'calls'" in condensed.report.failed["folding"]
    assert "forward() writes 'calls'" in condensed.report.failed["frozen TorchScript, float32"]
    assert model.calls == 1
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, 16)
            torch.testing.assert_close(condensed.model(x), model(x))
    assert condensed.model.calls == model.calls == 4
    torch.testing.assert_close(condensed.model.last, x.mean(0))


def test_attribute_that_forward_sets_is_set_at_each_call(times):
    class Keeps(nn.Sequential):
        def forward(self, x):
            self.shown = super().forward(x)
            return self.shown * 2

    times["folded, float32"] = 1.0
    model = Keeps(nn.Linear(16, 16), nn.ReLU())
    condensed = quickly(model, sparse_masks(model), torch.randn(4, 16))
    x = torch.randn(4, 16)
    with torch.no_grad():
        condensed.model(x)
        model(x)
    torch.testing.assert_close(condensed.model.shown, model.shown)


class Notes:
    """Records the shapes that modules return."""

    def __init__(self):
        self.found = []

    def after(self, module, given, output):
        self.found.append(output.shape)


def note(found, module, given):
    found.append(given[0].shape)


@pytest.mark.parametrize("fastest", IMPLEMENTATIONS)
@pytest.mark.parametrize("place", ["", "conv1", "norm1", "relu", "dropout", "pool", "head"])
def test_hooks_of_the_user_run_and_get_the_same_shapes_as_before(times, fastest, place):
    times[fastest] = 1.0
    model = settled(Residual())
    masks, x = sparse_masks(model), torch.randn(4, 3, 8, 8)
    notes, before = Notes(), []
    module = model.get_submodule(place)
    module.register_forward_hook(notes.after)
    module.register_forward_pre_hook(functools.partial(note, before))
    with torch.no_grad():
        expected = model(x)
        shapes = notes.found.copy(), before.copy()
        condensed = quickly(model, masks, x)
        notes.found.clear()
        before.clear()
        torch.testing.assert_close(condensed.model(x), expected, rtol=1e-4, atol=1e-5)
    assert (notes.found, before) == shapes
    assert "has hooks" in condensed.report.failed["frozen TorchScript, float32"]


@needs_kernels
def test_layer_with_a_hook_is_not_replaced_and_the_report_says_so(times):
    times["sparse, float32"] = 1.0
    model = two_layers()
    masks, x = sparse_masks(model), torch.randn(4, 32)
    model[0].register_forward_hook(lambda module, given, output: 2 * output)
    condensed = quickly(model, masks, x)
    (live,) = live_layers(condensed.model)
    assert live.shape == (8, 32)
    reasons = {layer.name: layer.obstacle for layer in condensed.report.layers}
    assert "hooks" in reasons["0.weight"]
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


@needs_kernels
def test_hooks_of_a_block_run_while_its_layers_are_live(times):
    times["sparse, float32"] = 1.0
    model = nn.Sequential(two_layers(), nn.Linear(8, 8))
    masks, x = sparse_masks(model), torch.randn(4, 32)
    found = []
    model[0].register_forward_hook(lambda module, given, output: found.append(output))
    condensed = quickly(model, masks, x)
    found.clear()
    with torch.no_grad():
        condensed.model(x)
        expected = model[0](x)
    assert len(live_layers(condensed.model)) == 3
    torch.testing.assert_close(found[0], expected)
    assert "'0' has hooks" in condensed.report.failed["folding"]


def test_hook_that_is_a_method_of_the_model_is_a_method_of_the_copy(times):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(16, 4), 0
            self.layer.register_forward_hook(self.count)

        def count(self, *_):
            self.calls += 1

        def forward(self, x):
            return self.layer(x)

    model = Counted()
    copied = copy_for_inference(model)
    copied(torch.randn(2, 16))
    assert (model.calls, copied.calls) == (0, 1)
    assert copy.deepcopy(copied).layer is not copied.layer


class Stateful(nn.Module):
    """It keeps its state from call to call, as a tuple, and what it returned, as a list."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.layer = nn.LSTM(16, 32), nn.Linear(32, 32)
        self.state, self.outputs, self.calls = None, [], 0

    def forward(self, x):
        y, self.state = self.recurrent(x, self.state)
        self.calls += 1
        self.outputs.append(self.layer(y))
        return self.outputs[-1]


@pytest.mark.parametrize("implementation", ["as it is, float32", "sparse, float32"])
def test_state_that_forward_keeps_is_left_alone_and_goes_on_in_the_copy(times, implementation):
    times[implementation] = 1.0
    model, x = Stateful(), torch.randn(3, 2, 16)
    masks = sparse_masks(model)
    model(x)
    state, outputs = model.state, list(model.outputs)
    condensed = quickly(model, masks, x)
    assert model.state is state
    assert model.calls == 1
    assert len(model.outputs) == len(outputs) == 1
    assert model.outputs[0] is outputs[0]
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(condensed.model(x), model(x))


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("implementation", ["as it is, float32", "sparse, float32"])
def test_state_in_a_container_is_left_alone_and_goes_on_in_the_copy(times, kind, implementation):
    times[implementation] = 1.0
    model, x = Counting(kind), torch.randn(3, 16)
    masks = sparse_masks(model)
    model(x)
    before = repr(model.state)
    condensed = quickly(model, masks, x)
    assert repr(model.state) == before
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(condensed.model(x), model(x))


def test_attributes_from_shapes_do_not_hinder_folding(times):
    class Shaped(nn.Sequential):
        def forward(self, x):
            self.shape, self.device = x.shape, x.device
            return super().forward(x)

    times["folded, float32"] = 1.0
    model, x = Shaped(nn.Linear(16, 16), nn.ReLU()), torch.randn(4, 16)
    masks = sparse_masks(model)
    model(x)
    condensed = quickly(model, masks, x)
    assert "folding" not in condensed.report.failed
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


class Masking:
    """A hook that masks the weight of the module that it holds."""

    def __init__(self, module, mask):
        self.module, self.mask = module, mask

    def before(self, *_):
        self.module.weight.data.mul_(self.mask)

    __call__ = before


@pytest.mark.parametrize("kind", ["object", "method", "partial"])
def test_hook_that_holds_a_module_holds_the_copy_of_the_module(times, kind):
    times["as it is, float32"] = 1.0
    model, x = two_layers(), torch.randn(4, 32)
    masking = Masking(model[0], torch.rand(32, 32) < 0.1)
    hook = {
        "object": masking,
        "method": masking.before,
        "partial": functools.partial(Masking.before, masking),
    }[kind]
    model[0].register_forward_pre_hook(hook)
    copied = copy_for_inference(model)
    weight = model[0].weight.detach().clone()
    with torch.no_grad():
        found = copied(x)
        torch.testing.assert_close(model[0].weight, weight, rtol=0, atol=0)
        torch.testing.assert_close(found, model(x))


@pytest.mark.parametrize("how", ["prune", "weight_norm"])
def test_weights_of_recurrent_layers_that_are_computed_do_not_hinder_programs(times, how):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.layer = nn.LSTM(16, 32), nn.Linear(32, 8)

        def forward(self, x):
            return self.layer(self.recurrent(x)[0])

    model, x = Recurrent(), torch.randn(3, 2, 16)
    masks = {"layer": sparse_masks(model)["layer.weight"]}
    if how == "prune":
        prune.l1_unstructured(model.recurrent, "weight_hh_l0", 0.9)
    else:
        parametrizations.weight_norm(model.recurrent, "weight_hh_l0")
    condensed = quickly(model, masks, x)
    assert "forward() writes" not in str(condensed.report.failed)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


@needs_kernels
def test_model_that_caches_in_its_first_call_is_folded_after_that_call(times):
    class Caches(nn.Sequential):
        places = None

        def forward(self, x):
            if self.places is None:
                self.places = torch.arange(x.shape[-1]) / x.shape[-1]
            return super().forward(x + self.places)

    times["sparse, float32"] = 1.0
    model, x = Caches(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(4, 16)
    masks = sparse_masks(model)
    unknown = quickly(model, masks, x)
    assert (
        "'places' in its first call only: call the model once" in unknown.report.failed["folding"]
    )
    with torch.no_grad():
        torch.testing.assert_close(unknown.model(x), model(x))
        condensed = quickly(model, masks, x)
        assert "folding" not in condensed.report.failed
        torch.testing.assert_close(condensed.model(x), model(x))


def test_random_state_is_left_alone_by_condensing_a_model_that_draws_numbers():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0 * torch.randn_like(x)

    model, x = nn.Sequential(Noisy(16, 16)), torch.randn(4, 16)
    masks = sparse_masks(model)
    before = torch.get_rng_state()
    quickly(model, masks, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_model_with_a_scripted_part_is_condensed(times):
    times["sparse, float32"] = 1.0
    model, x = nn.Sequential(two_layers(), torch.jit.script(nn.Linear(8, 8))), torch.randn(4, 32)
    masks = sparse_masks(model[0])
    condensed = quickly(model, {f"0.{name}": mask for name, mask in masks.items()}, x)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))
