"""Traced networks: what is folded into which layer, and that the results stay the same."""

import copy
import functools
import pickle
from types import MethodType

import pytest
import torch
from torch import nn

from sparseopt.speedup import kernels
from sparseopt.speedup.inference.candidates import candidates_for, uncovered
from sparseopt.speedup.inference.copies import skipped_by_trace
from sparseopt.speedup.inference.masks import masks_by_name
from sparseopt.speedup.inference.network import ModuleNetwork, Network
from sparseopt.speedup.inference.tracing import take_apart
from tests.speedup.inference.nets import Residual, Untraceable, live_layers, settled, sparse_masks

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
INFINITY = float("inf")


def built(model, masks, x, kind, dtype=torch.float32):
    network, _ = take_apart(model, x if isinstance(x, tuple) else (x,), {})
    candidates, _ = candidates_for(network, masks, dtype)
    layers = {one.site.name: one.layers.get(kind, one.layers["dense"]) for one in candidates}
    return network.build(layers, None if dtype == torch.float32 else dtype)


def test_norms_additions_and_activations_are_folded_into_the_layers_before_them():
    model = settled(Residual())
    network, why = take_apart(model, (torch.randn(2, 3, 8, 8),), {})
    assert why is None
    sites = network.sites
    assert {name: site.origin.norm for name, site in sites.items()} == {
        "stem": "norm0",
        "conv1": "norm1",
        "conv2": "norm2",
        "short": None,
        "conv3": None,
        "head": None,
    }
    # The shortcut runs after the second convolution, so it adds the result of the second
    # convolution, and clamps the sum.
    assert sites["short"].bounds == (0, 6)
    assert len(sites["short"].inputs) == 2
    assert sites["stem"].bounds == sites["conv1"].bounds == (0, INFINITY)
    assert sites["conv2"].bounds is sites["head"].bounds is None
    assert network.affine["norm3"].bounds == (0, INFINITY)


@needs_kernels
@pytest.mark.parametrize("kind", ["dense", "live"])
@pytest.mark.parametrize("batch", [1, 2, 16, 33])
def test_folded_network_computes_the_same_as_the_model(batch, kind):
    model = settled(Residual())
    masks = sparse_masks(model)
    x = torch.randn(batch, 3, 9, 8)
    with torch.no_grad():
        found, expected = built(model, masks, x, kind)(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", ["dense", "live"])
def test_folded_network_in_bfloat16_is_as_exact_as_the_model_in_bfloat16(kind):
    model = settled(Residual())
    masks = sparse_masks(model)
    x = torch.randn(32, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        found = built(model, masks, x, kind, torch.bfloat16)(x.bfloat16()).float()
        plain = copy.deepcopy(model).bfloat16()(x.bfloat16()).float()
    assert (found - expected).norm() <= 1.2 * (plain - expected).norm()


@needs_kernels
def test_network_computes_the_same_for_other_batches_and_sizes():
    model = settled(Residual())
    live = built(model, sparse_masks(model), torch.randn(4, 3, 8, 8), "live")
    for shape in ((1, 3, 8, 8), (64, 3, 12, 10), (3, 3, 7, 7)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(live(x), model(x), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_gradients_of_the_input_equal_the_gradients_of_the_model():
    model = settled(Residual())
    masks = sparse_masks(model)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    live = built(model, masks, x.detach(), "live")
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (found,) = torch.autograd.grad(live(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@needs_kernels
def test_model_that_cannot_be_traced_has_its_layers_replaced_one_by_one():
    model = settled(Untraceable())
    masks = sparse_masks(model)
    x = torch.randn(5, 4, 8, 8)
    network, why = take_apart(model, (x,), {})
    assert isinstance(network, ModuleNetwork)
    assert "TraceError" in why
    with torch.no_grad():
        found, expected = built(model, masks, x, "live")(x)["logits"], model(x)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_is_split_into_two_linear_layers(batch_first):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)

        def forward(self, x):
            y = self.norm(x)
            y, _ = self.attention(y, y, y, need_weights=False)
            return x + y

    model = settled(Attends())
    masks = {name: torch.rand(p.shape) < 0.3 for name, p in model.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = 0
    x = torch.randn(3, 7, 16)
    network, why = take_apart(model, (x,), {})
    assert why is None
    assert {site.origin.weight for site in network.sites.values()} == set(masks)
    with torch.no_grad():
        torch.testing.assert_close(built(model, masks, x, "live")(x), model(x))
    assert isinstance(model.attention, nn.MultiheadAttention)


def test_layer_that_is_called_twice_has_nothing_folded_into_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(self.conv(x).relu()))

    model = settled(Twice())
    masks = sparse_masks(model, 0.5)
    x = torch.randn(2, 4, 5, 5)
    network, _ = take_apart(model, (x,), {})
    assert isinstance(network, Network)
    assert network.sites["conv"].norm is network.sites["conv"].bounds is None
    with torch.no_grad():
        torch.testing.assert_close(built(model, masks, x, "live")(x), model(x))


def test_addition_that_broadcasts_is_not_folded():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.gate(x.mean((2, 3), keepdim=True)) + self.conv(x)

    model = settled(Gate())
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(built(model, sparse_masks(model), x, "live")(x), model(x))


def test_masks_by_name_of_weight_or_module_and_nonzero_are_the_same():
    model = settled(Residual())
    masks = sparse_masks(model)
    by_module = {name.removesuffix(".weight"): mask for name, mask in masks.items()}
    for given in (masks, by_module, "nonzero"):
        found = masks_by_name(model, given)
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"conv9": torch.ones(1, dtype=torch.bool)}, ValueError, "conv9"),
        ({"head": torch.ones(2, 2, dtype=torch.bool)}, ValueError, r"'head.weight'.*\(2, 2\)"),
        ({"head": torch.ones(10, 32)}, TypeError, "bool"),
        (dict.fromkeys(("head", "head.weight"), torch.ones(10, 32) > 0), ValueError, "two masks"),
        (0.1, TypeError, "SparseOptimizer"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_name(given, error, words):
    with pytest.raises(error, match=words):
        masks_by_name(Residual(), given)


class Encodes(nn.Module):
    """A layer, torch's encoder with the masks of the call, and a head."""

    def __init__(self, settings, nested=False):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(16, 5)

    def forward(self, x, mask=None, padding=None):
        return self.head(self.encoder(self.embed(x), mask, padding))


def sparse_everywhere(model):
    """Mask all matrices of a model, in place, and return the masks."""
    masks = {name: torch.rand(p.shape) < 0.3 for name, p in model.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = 0
    return masks


def built_sparse_everywhere(model, x):
    """Masks of all matrices, and the model with a live layer for each of them."""
    masks = sparse_everywhere(model)
    network, why = take_apart(model, (x,), {})
    assert why is None
    assert {site.origin.weight for site in network.sites.values()} == set(masks)
    return masks, built(model, masks, x, "live")


@needs_kernels
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_first": True},
        {"batch_first": False, "activation": "gelu"},
        {"batch_first": True, "norm_first": True, "activation": nn.GELU("tanh")},
        {"batch_first": True, "bias": False},
    ],
    ids=str,
)
def test_all_weights_inside_torchs_encoder_are_computed_sparse(settings):
    torch.manual_seed(0)
    model = settled(Encodes(settings))
    x = torch.randn(3, 7, 16)
    masks, condensed = built_sparse_everywhere(model, x)
    assert len(live_layers(condensed)) == len(masks)
    with torch.no_grad():
        torch.testing.assert_close(condensed(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(condensed(x[0]), model(x[0]), rtol=1e-4, atol=1e-5)


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length)


@needs_kernels
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("mask", "lengths"),
    [
        (causal(7), None),
        (causal(7) != 0, [7, 4, 1]),
        ((torch.rand(12, 7, 7) < 0.5) & ~torch.eye(7, dtype=torch.bool), None),
        (None, [7, 4, 1]),
        (None, [2, 5, 3]),
    ],
    ids=["causal", "both", "by head", "padding", "padding everywhere"],
)
@pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor",
    "ignore:Support for mismatched",
    "ignore:The PyTorch API of nested tensors",
)
def test_masks_of_torchs_encoder_are_applied(mask, lengths, batch_first, nested):
    torch.manual_seed(0)
    model = settled(Encodes({"batch_first": batch_first}, nested))
    masks = sparse_everywhere(model)
    x = torch.randn(3, 7, 16) if batch_first else torch.randn(7, 3, 16)
    padding = None if lengths is None else torch.arange(7) >= torch.tensor(lengths)[:, None]
    condensed = built(model, masks, (x, mask, padding), "live")
    assert len(live_layers(condensed)) == len(masks)
    with torch.no_grad():
        # Padding on the left would hide all keys from the first query under a causal mask.
        for one in (padding, padding.flip(1) if mask is None else padding):
            expected, found = (each(x, mask, one) for each in (model, condensed))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_encoder_with_an_activation_that_cannot_be_traced_stays_as_it_is():
    def activation(x):
        return x.relu() if x.sum() > -1e9 else x

    model = settled(Encodes({"batch_first": True, "activation": activation}))
    masks = sparse_everywhere(model)
    x = torch.randn(3, 7, 16)
    network, why = take_apart(model, (x,), {})
    assert why is None
    assert set(network.sites) == {"embed", "head"}
    absent = {one.name: one.obstacle for one in uncovered(model, network, masks)}
    assert "encoder" in absent["encoder.layers.0.linear1.weight"]
    assert "TransformerEncoder around it" in absent["encoder.layers.0.linear1.weight"]


def test_layer_of_an_encoder_with_hooks_stays_as_it_is():
    model = settled(Encodes({"batch_first": True}))
    calls = []
    model.encoder.layers[1].register_forward_hook(lambda *_: calls.append(1))
    network, why = take_apart(model, (torch.randn(3, 7, 16),), {})
    assert why is None
    assert "encoder.layers.0.linear1" in network.sites
    assert "encoder.layers.1.linear1" not in network.sites
    calls.clear()
    network.build({})(torch.randn(3, 7, 16))
    assert calls == [1]


def test_attention_whose_weights_nobody_reads_is_split():
    class Attends(nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.attention, self.reads = nn.MultiheadAttention(16, 4), reads

        def forward(self, x):
            y, weights = self.attention(x, x, x)
            return (y, weights) if self.reads else y

    x = torch.randn(7, 3, 16)
    for reads in (True, False):
        network, _ = take_apart(settled(Attends(reads)), (x,), {})
        assert len(network.sites) == (0 if reads else 2)


@needs_kernels
@pytest.mark.parametrize("kind", ["encoder", "layer"])
def test_model_that_is_itself_torchs_encoder_is_traced(kind):
    torch.manual_seed(0)
    model = settled(Encodes({"batch_first": True})).encoder
    if kind == "layer":
        model = model.layers[0]
    x = torch.randn(3, 7, 16)
    _, condensed = built_sparse_everywhere(model, x)
    with torch.no_grad():
        torch.testing.assert_close(condensed(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            condensed(x, causal(7)), model(x, causal(7)), rtol=1e-4, atol=1e-5
        )


@needs_kernels
def test_condensed_encoder_is_exported_and_pickled():
    torch.manual_seed(0)
    model = settled(Encodes({"batch_first": True}, nested=True))
    masks, x = sparse_everywhere(model), torch.randn(3, 7, 16)
    condensed = built(model, masks, x, "live")
    again = pickle.loads(pickle.dumps(condensed))
    exported = torch.export.export(condensed, (x,)).module()
    with torch.no_grad():
        for one in (again, exported):
            torch.testing.assert_close(one(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "function"),
    [
        ("encoder", "forward"),
        ("encoder.layers.0", "forward"),
        ("encoder.layers.0", "_sa_block"),
        ("encoder.layers.1", "_ff_block"),
        ("encoder.layers.0.self_attn", "forward"),
        ("encoder.layers.0.linear1", "forward"),
    ],
)
def test_encoder_with_a_replaced_function_inside_stays_as_it_is(path, function):
    torch.manual_seed(0)
    model = settled(Encodes({"batch_first": True}))
    module = model.get_submodule(path)
    of_class = getattr(module, function)

    def doubled_unless_positive(self, x, *args, **kwargs):
        y = of_class(x, *args, **kwargs)
        y, *rest = y if isinstance(y, tuple) else (y,)
        y = y if x.min() > 0 else 2 * y
        return (y, *rest) if rest else y

    setattr(module, function, MethodType(doubled_unless_positive, module))
    masks, x = sparse_everywhere(model), torch.randn(3, 7, 16)
    network, why = take_apart(model, (x,), {})
    assert why is None
    assert set(network.sites) == {"embed", "head"}
    absent = {one.name: one.obstacle for one in uncovered(model, network, masks)}
    assert "TransformerEncoder around it" in absent["encoder.layers.1.linear1.weight"]
    built_again = network.build({})
    with torch.no_grad():
        for one in (x, x.abs() + 1):
            torch.testing.assert_close(built_again(one), model(one), rtol=1e-4, atol=1e-5)


class Stacked(nn.Module):
    """Attention, a convolution, a norm, a clamp, dropout, pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.attention(x, x, x)[0].unsqueeze(1)
        x = self.dropout(self.relu(self.norm(self.convolution(x))))
        return self.linear(self.pool(x))


@pytest.mark.parametrize(
    "path", ["attention", "convolution", "norm", "relu", "dropout", "pool", "linear", ""]
)
def test_replaced_forward_of_any_module_is_called(path):
    torch.manual_seed(0)
    model = settled(Stacked())
    module = model.get_submodule(path)
    of_class, calls = module.forward, []

    @functools.wraps(of_class)
    def forward(*args, **kwargs):
        calls.append(path)
        return of_class(*args, **kwargs)

    module.forward = forward
    masks, x = sparse_everywhere(model), torch.randn(3, 7, 8)
    network, _ = take_apart(model, (x,), {}, skipped_by_trace(model, (x,), {}))
    assert path not in network.sites
    if path in {"attention", "convolution", "linear"}:
        absent = {one.name: one.obstacle for one in uncovered(model, network, masks)}
        weight = f"{path}.in_proj_weight" if path == "attention" else f"{path}.weight"
        assert "function of its module is replaced" in absent[weight]
    candidates, _ = candidates_for(network, masks, torch.float32)
    condensed = network.build({one.site.name: one.layers["dense"] for one in candidates})
    calls.clear()
    with torch.no_grad():
        found = condensed(x)
        assert calls == [path]
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", ["live", "dense"])
def test_attention_of_an_empty_batch_is_empty(kind):
    model = settled(Encodes({"batch_first": True}))
    masks, x = sparse_everywhere(model), torch.randn(3, 7, 16)
    condensed = built(model, masks, x, kind)
    with torch.no_grad():
        assert condensed(x[:0]).shape == model(x[:0]).shape == (0, 7, 5)
