"""Which weights are made sparse, and how dense each: `sparse=` and patterns in `init=`."""

import copy
import logging
import pickle
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparseopt import NoSparseLayerError, Pruning, SparseOptimizer, speed_up
from sparseopt.masks.selection import select
from tests.oracle.distributions import erk_densities
from tests.speedup.kernels.dense import needs_kernels
from tests.support.wrapping import wrap

LSTM_LAYERS = ["embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


class LanguageModel(nn.Module):
    def __init__(self, cell=nn.LSTM):
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.lstm = cell(12, 20, batch_first=True)
        self.head = nn.Linear(20, 40)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0])


class Experts(nn.Module):
    """Three experts, each a matrix of a parameter of three dimensions."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 24) / 5)
        self.down = nn.Parameter(torch.randn(3, 24, 8) / 5)
        self.gate = nn.Linear(8, 3)

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        each = torch.relu(x @ self.up.view(3, 1, 8, 24).squeeze(1)) @ self.down
        return torch.einsum("enf,ne->nf", each, shares)


class OwnLinear(nn.Module):
    """A linear map as graph libraries write their own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.kernel + self.bias


def lm_loss(model):
    tokens = torch.randint(0, 40, (4, 9))
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def train(optimizer, loss, steps=7):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def names(optimizer):
    return [layer.name for layer in optimizer.layers]


def densities(optimizer):
    return {layer.name: layer.density for layer in optimizer.layers}


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [
        (None, ["head.weight"]),
        ({nn.LSTM: True}, LSTM_LAYERS[1:]),
        ({"lstm": True, "embed": True}, LSTM_LAYERS),
        ({"*weight_hh*": True}, LSTM_LAYERS[2:]),
        ({"lstm.weight_ih_l0": True, "head": False}, LSTM_LAYERS[1:2]),
        # The last of patterns counts, and a name before any pattern.
        ({"*": True, "embed*": False}, LSTM_LAYERS[1:]),
        ({"embed*": False, "*": True}, LSTM_LAYERS),
        ({"embed": False, "*": True}, LSTM_LAYERS[1:]),
        ({nn.Module: True, nn.Linear: False}, LSTM_LAYERS[:3]),
        (lambda name, parameter, module: isinstance(module, nn.Embedding) or None,
         ["embed.weight", "head.weight"]),
    ],
)  # fmt: skip
def test_selection_adds_to_the_default_or_takes_from_it(sparse, expected):
    assert names(wrap(LanguageModel(), sparse=sparse)) == expected


def test_selection_by_class_looks_through_the_model_once_for_all_parameters():
    class Counted(nn.Sequential):
        times = 0

        def modules(self):
            self.times += 1
            return super().modules()

    looks = []
    for size in (4, 40):
        model = Counted(*(nn.Linear(4, 4) for _ in range(size)))
        select(model, {nn.Linear: True, nn.Module: True, "*": True})
        looks.append(model.times)
    assert looks[0] == looks[1]


def test_selection_by_module_and_by_parameter():
    model = LanguageModel()
    optimizer = wrap(model, sparse={model.lstm: True, model.head.weight: False})
    assert names(optimizer) == LSTM_LAYERS[1:3]


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_erk_takes_every_gate_for_a_layer(cell, gates):
    optimizer = wrap(LanguageModel(cell), sparse={cell: True, "embed": True}, density=0.3)
    shapes = [(40, 12), *[(20, 12)] * gates, *[(20, 20)] * gates, (40, 20)]
    by_matrix = erk_densities(shapes, 0.3)
    expected = [by_matrix[0], by_matrix[1], by_matrix[1 + gates], by_matrix[-1]]
    numel = [480, 240 * gates, 400 * gates, 800]
    for layer, density, size in zip(optimizer.layers, expected, numel, strict=True):
        assert (layer.live, layer.numel) == (round(density * size), size), layer.name


def test_erk_takes_every_expert_for_a_layer():
    model = Experts()
    optimizer = wrap(model, sparse={Experts: True}, density=0.4)
    by_matrix = erk_densities([(8, 24)] * 3 + [(24, 8)] * 3 + [(3, 8)], 0.4)
    assert [layer.live for layer in optimizer.layers] == [
        round(by_matrix[0] * 576), round(by_matrix[3] * 576), round(by_matrix[6] * 24)
    ]  # fmt: skip
    train(optimizer, lambda: model(torch.randn(16, 8)).square().mean())
    for layer in optimizer.layers:
        assert int((layer.weight != 0).sum()) <= layer.live
        assert not layer.weight[~layer.mask].any()


@pytest.mark.slow
def test_experts_of_a_mixture_become_sparse():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    optimizer = wrap(model, "AdamW", sparse={"*.experts": True, "lm_head": False}, density=0.2)
    covered = sum(layer.numel for layer in optimizer.layers)
    assert covered > 0.8 * sum(p.numel() for p in model.parameters())
    tokens = torch.randint(0, 32, (2, 7))
    train(optimizer, lambda: model(input_ids=tokens, labels=tokens).loss)
    assert optimizer.history[0].grown
    for layer in optimizer.layers:
        assert not layer.weight[~layer.mask].any(), layer.name


class CausalConvolution(nn.Conv1d):
    """Looks back only."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (self.dilation[0] * 2, 0)))


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions under weight norm, and a way past them (Bai et al. 2018)."""

    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.first = parametrizations.weight_norm(
            CausalConvolution(inputs, outputs, 3, dilation=dilation)
        )
        self.second = parametrizations.weight_norm(
            CausalConvolution(outputs, outputs, 3, dilation=dilation)
        )
        self.past = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x):
        return (self.second(self.first(x).relu()).relu() + self.past(x)).relu()


def temporal_network():
    return nn.Sequential(
        TemporalBlock(3, 12, 1), TemporalBlock(12, 12, 2), TemporalBlock(12, 12, 4),
        nn.Conv1d(12, 2, 1),
    )  # fmt: skip


def forecast_loss(model):
    series = torch.randn(4, 3, 20)
    return (model(series) - series[:, :2].cumsum(2)).square().mean()


def discriminator():
    """Under spectral norm, and of batches of 8 images (Miyato et al. 2018)."""
    normed = parametrizations.spectral_norm
    return nn.Sequential(
        normed(nn.Conv2d(3, 16, 4, 2, 1)), nn.LeakyReLU(0.1),
        normed(nn.Conv2d(16, 32, 4, 2, 1)), nn.LeakyReLU(0.1),
        nn.Flatten(), normed(nn.Linear(32 * 4, 1)),
    )  # fmt: skip


def hinge_loss(model):
    real, made = torch.randn(8, 3, 8, 8), torch.rand(8, 3, 8, 8)
    return (1 - model(real)).relu().mean() + (1 + model(made)).relu().mean()


@pytest.mark.parametrize("method", ["static", "rigl"])
@pytest.mark.parametrize(
    ("build", "loss", "sparse"),
    [
        (LanguageModel, lm_loss, {"*": True}),
        (temporal_network, forecast_loss, {TemporalBlock: True}),
        (discriminator, hinge_loss, {"*": True}),
    ],
    ids=["LSTM language model", "weight-normed TCN", "spectral-normed discriminator"],
)
def test_model_trains_as_one_that_is_masked_by_hand(build, loss, sparse, method):
    torch.manual_seed(0)
    model = build()
    byhand = copy.deepcopy(model)
    optimizer = wrap(
        model, "Adam", sparse=sparse, method=method, state="masked", density=0.25, delta_t=3
    )
    plain = torch.optim.Adam(byhand.parameters(), **optimizer.inner.defaults)
    twins = dict(byhand.named_parameters())

    def mask(masks):
        for name, live in masks.items():
            twins[name].data[~live] = 0
            for state in plain.state.get(twins[name], {}).values():
                if state.shape == live.shape:
                    state[~live] = 0

    mask(optimizer.masks)
    for step in range(8):
        updating, before = optimizer.is_update_step, optimizer.masks
        for trained, stepped in ((model, optimizer), (byhand, plain)):
            torch.manual_seed(step)
            stepped.zero_grad()
            loss(trained).backward()
        for name, live in before.items():
            twins[name].grad[~live] = 0
        optimizer.step()
        if not updating:
            plain.step()
        mask(optimizer.masks)
    assert len(optimizer.history) == (2 if method == "rigl" else 0)
    assert all((twins[name] != 0).sum() <= mask.sum() for name, mask in optimizer.masks.items())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        torch.testing.assert_close(parameter, twins[name], rtol=0, atol=0)


def test_checkpoint_fits_by_name_whatever_the_order_of_selection():
    torch.manual_seed(0)
    first, second = LanguageModel(), LanguageModel()
    optimizer = wrap(first, "Adam", sparse={"lstm": True, "embed": True})
    train(optimizer, lambda: lm_loss(first))
    second.load_state_dict(first.state_dict())
    other = wrap(second, "Adam", sparse={"embed": True, nn.LSTM: True}, mask="magnitude")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(torch.equal(optimizer.masks[name], mask) for name, mask in other.masks.items())
    for model, stepped in ((first, optimizer), (second, other)):
        torch.manual_seed(1)
        train(stepped, lambda model=model: lm_loss(model))
    for mine, its in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_weight_that_is_computed_is_as_sparse_as_what_it_is_computed_from(norm):
    make = getattr(parametrizations, norm)
    model = nn.Sequential(make(nn.Conv1d(4, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 2))
    optimizer = wrap(model, sparse={"0.weight": True}, density=0.4, init={})
    assert names(optimizer)[0].startswith("0.parametrizations.weight.original")
    train(optimizer, lambda: model(torch.randn(5, 4, 8)).square().mean())
    live = optimizer.layers[0].live
    assert optimizer.history[0].grown
    assert int((model[0].weight != 0).sum()) <= live < 96
    # 6 positions, 2 FLOPs for each live weight; spectral norm multiplies by the weight once more.
    report = optimizer.flops(model, torch.randn(1, 4, 8))
    assert report.computed == 0.0
    assert {layer.name: layer.sparse for layer in report.layers}[names(optimizer)[0]] == (
        pytest.approx(2 * 6 * live, rel=0.2)
    )


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_erk_takes_a_convolution_for_one_layer_whatever_computes_its_weight(norm):
    make = getattr(parametrizations, norm)
    model = nn.Sequential(make(nn.Conv1d(32, 64, 3)), nn.Conv1d(64, 64, 3))
    optimizer = wrap(model, sparse={"0": True}, density=0.25)
    plain = wrap(nn.Sequential(nn.Conv1d(32, 64, 3), nn.Conv1d(64, 64, 3)), density=0.25)
    assert [layer.live for layer in optimizer.layers] == [layer.live for layer in plain.layers]


def test_erk_takes_every_gate_for_a_layer_under_weight_norm():
    def normed(inputs, outputs):
        return parametrizations.weight_norm(nn.LSTMCell(inputs, outputs), "weight_hh")

    optimizer = wrap(nn.Sequential(normed(12, 20)), sparse={nn.LSTMCell: True}, density=0.3)
    by_matrix = erk_densities([(20, 12)] * 4 + [(20, 20)] * 4, 0.3)
    live = {layer.name: layer.live for layer in optimizer.layers}
    assert live == {
        "0.weight_ih": round(by_matrix[0] * 960),
        "0.parametrizations.weight_hh.original1": round(by_matrix[4] * 1600),
    }


def test_temporal_convolutions_under_the_older_weight_norm_become_sparse():
    with pytest.warns(FutureWarning, match="weight_norm"):
        convolution = torch.nn.utils.weight_norm(nn.Conv1d(4, 8, 3, padding=2, dilation=2))
    model = nn.Sequential(convolution, nn.ReLU(), nn.Conv1d(8, 2, 1))
    optimizer = wrap(model, sparse={"0": True}, density=0.3)
    assert names(optimizer) == ["0.weight_v", "2.weight"]
    train(optimizer, lambda: model(torch.randn(5, 4, 8)).square().mean())
    assert int((model[0].weight != 0).sum()) <= optimizer.layers[0].live
    report = optimizer.flops(model, torch.randn(1, 4, 8))
    assert report.computed == 0.0


def test_masks_of_torch_prune_can_be_trained_on():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.75)
    optimizer = wrap(model, sparse={"0": True}, mask={"0.weight_orig": model[0].weight_mask.bool()},
                     method="static")  # fmt: skip
    train(optimizer, lambda: model(torch.randn(5, 8)).square().mean())
    assert torch.equal(model[0].weight != 0, optimizer.masks["0.weight_orig"])


class Attention(nn.Module):
    """Weights of its own, of which one is called as what the older weight norm makes."""

    def __init__(self):
        super().__init__()
        for name in ("weight_q", "weight_k", "weight_v"):
            setattr(self, name, nn.Parameter(torch.randn(8, 8) / 3))

    def forward(self, x):
        attended = (x @ self.weight_q) @ (x @ self.weight_k).T
        return attended.softmax(-1) @ (x @ self.weight_v)


def test_parameter_that_is_only_called_as_one_of_weight_norm_is_a_weight_of_its_own():
    model = nn.Sequential(Attention(), nn.Linear(8, 2))
    optimizer = wrap(model, sparse={"0": True}, init={"0": 0.5}, density=0.25)
    weights = ["0.weight_q", "0.weight_k", "0.weight_v"]
    assert densities(optimizer) == {**dict.fromkeys(weights, 0.5), "1.weight": 0.25}
    report = optimizer.flops(model, torch.randn(5, 8))
    sparse = {layer.name: layer.sparse for layer in report.layers}
    # 2 FLOPs for each live weight, and an addition for each of two biases.
    assert sparse == dict.fromkeys(weights, 64.0) | {"1.weight": 10.0}
    with pytest.raises(ValueError, match=r"'0.weight' is not known"):
        wrap(nn.Sequential(Attention()), sparse={"0.weight": True})
    with pytest.raises(ValueError, match=r"'0' is not known"):
        optimizer.set_masks({"0": torch.eye(8).bool()})


@pytest.mark.parametrize("key", ["0", "0.weight", "0.weigh?"])
def test_written_name_of_a_computed_weight_is_known_everywhere(key):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    optimizer = wrap(model, sparse={key: True}, init={key: 0.5}, density=0.25)
    name = "0.parametrizations.weight.original1"
    assert densities(optimizer) == {name: 0.5, "1.weight": 0.25}
    if "?" not in key:
        # Beside the diagonal, what is live now: weight norm needs a number in every row.
        mask = optimizer.masks[name] | torch.eye(8).bool()
        optimizer.set_masks({key: mask})
        assert torch.equal(optimizer.masks[name], mask)


def test_written_name_of_a_model_that_is_one_module():
    model = parametrizations.weight_norm(nn.Linear(8, 8))
    optimizer = wrap(model, sparse={"weight": True}, init={"weight": 0.5})
    assert densities(optimizer) == {"parametrizations.weight.original1": 0.5}


def test_graph_libraries_own_linear_layers_become_sparse():
    model = nn.Sequential(OwnLinear(8, 16), nn.ReLU(), OwnLinear(16, 2))
    optimizer = wrap(model, sparse={OwnLinear: True})
    assert names(optimizer) == ["0.kernel", "2.kernel"]
    train(optimizer, lambda: model(torch.randn(5, 8)).square().mean())
    assert not model[0].kernel[~optimizer.masks["0.kernel"]].any()


@pytest.mark.parametrize(
    ("sparse", "error", "message"),
    [
        ({"lstmm": True}, ValueError, r"'lstmm' is not known; did you mean 'lstm'\?"),
        ({"encoder.*": True}, ValueError, r"'encoder.\*' is not known"),
        ({nn.GRU: True}, ValueError, r"GRU.*selects nothing"),
        ({"lstm.bias_ih_l0": True}, ValueError, "can't be sparse"),
        ({"lstm": 0.5}, TypeError, "must be True or False; how dense a layer is goes into init="),
        ({3: True}, TypeError, "has the key 3"),
        (["lstm"], TypeError, "must be a mapping"),
        (nn.LSTM, TypeError, "sparse=LSTM is one class or module"),
        (nn.LSTM(2, 2), TypeError, r"sparse=LSTM\(...\) is one class or module"),
        (lambda *_: "yes", TypeError, "returned 'yes' for 'embed.weight'"),
    ],
)
def test_selection_that_means_nothing_is_refused(sparse, error, message):
    model = LanguageModel()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        wrap(model, sparse=sparse)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_module_without_parameters_is_not_said_to_be_unknown():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="sparse='1' selects nothing: .*, a ReLU, has no param"):
        wrap(model, sparse={"1": True})


def test_selection_needs_the_model():
    model = LanguageModel()
    with pytest.raises(TypeError, match="so it needs the model"):
        SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), sparse={"lstm": True})


def test_selection_against_a_dense_param_group_is_refused():
    model = LanguageModel()
    groups = [
        {"params": model.lstm.parameters(), "density": False},
        {"params": model.head.parameters()},
    ]
    with pytest.raises(ValueError, match=r"'lstm.weight_ih_l0', whose param group has density=Fal"):
        SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, sparse={"lstm": True})


def test_selection_of_what_a_parametrization_spreads_is_refused():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"_Orthogonal computes the weight '0.weight'"):
        wrap(model, sparse={"0": True})


def refuse_density_of_group(model, unusable, reason):
    """See the density of a group refused, and return what is sparse without the unusable weight."""
    inner = torch.optim.SGD([{"params": model.parameters(), "density": 0.25}], lr=0.1)
    with pytest.raises(ValueError, match=f"asks for a density of {reason}"):
        SparseOptimizer(inner, model)
    return names(SparseOptimizer(inner, model, sparse={unusable: False}, total_steps=1000))


def test_density_of_a_param_group_for_what_a_parametrization_spreads_is_refused():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    reason = r"'0.parametrizations.*_Orthogonal"
    assert refuse_density_of_group(model, "0.weight", reason) == ["1.weight"]


def test_flops_count_what_a_parametrization_spreads_as_dense():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8, bias=False)))
    nn.init.normal_(model[0].parametrizations.weight.original)
    # Without the model, nobody knows what the parameter is for.
    inner = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, density=0.25, method="static")
    assert optimizer.layers[0].live == 16
    assert model[0].weight.count_nonzero() == 64
    assert optimizer.flops(model, torch.randn(1, 8)).inference_sparse >= 2 * 64


STANDARDISING = {
    "StdConv2d": "timm.layers",
    "StdConv2dSame": "timm.layers",
    "ScaledStdConv2d": "timm.layers",
    "ScaledStdConv2dSame": "timm.layers",
    "WeightStandardizedConv2d": "transformers.models.bit.modeling_bit",
}


@pytest.fixture(params=STANDARDISING)
def standardising(request):
    """A convolution that standardises its weight, and a linear layer."""
    package = pytest.importorskip(STANDARDISING[request.param])
    conv = getattr(package, request.param)(3, 4, 3)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_weight_that_its_convolution_standardises_stays_dense(standardising, caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = wrap(standardising)
    assert names(optimizer) == ["3.weight"]
    kind = type(standardising[0]).__name__
    assert any(f"'0.weight' is standardised by {kind}" in line for line in caplog.messages)


def test_zero_of_a_weight_that_is_standardised_is_no_zero_of_the_convolution(standardising):
    conv = standardising[0]
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.weight[:, :1])
    only_zeros_read_it = torch.zeros(1, 3, 5, 5)
    only_zeros_read_it[:, 1] = 1.0
    assert (conv(only_zeros_read_it) - conv(torch.zeros(1, 3, 5, 5))).abs().min() > 0.01


def test_selection_of_a_weight_that_is_standardised_is_refused(standardising):
    kind = type(standardising[0]).__name__
    with pytest.raises(ValueError, match=rf"'0\.weight', which {kind} standardises"):
        wrap(standardising, sparse={"0": True})
    reason = rf"'0\.weight', which {kind}"
    assert refuse_density_of_group(standardising, "0", reason) == ["3.weight"]


def test_model_of_weights_that_are_standardised_is_refused_with_the_reason(standardising):
    with pytest.raises(NoSparseLayerError, match=r"'0\.weight' is standardised by"):
        wrap(standardising[:1])


@pytest.mark.parametrize(
    "sparse", [{"*": True, "0": False}, {nn.Module: True, "0": False}, {"*": True, "0*": False}]
)
def test_selection_refuses_only_what_remains_selected(sparse):
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 2))
    assert names(wrap(model, sparse=sparse)) == ["1.weight"]
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    assert names(wrap(model, sparse=sparse)) == ["1.weight"]


class Tied(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self, sparse=False):
        super().__init__()
        self.embed = nn.Embedding(8, 4, sparse=sparse)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    "sparse",
    [
        {"head": True},
        {"head.weight": True},
        {"head*": True, "body": True},
        {nn.Linear: True},
        lambda name, parameter, module: name.startswith("head.w") or None,
        lambda name, parameter, module: (parameter.dim() == 2 and name != "body.weight") or None,
    ],
)
def test_tied_weight_is_selected_by_any_of_its_names(sparse):
    assert names(wrap(Tied(), sparse=sparse)) == ["embed.weight", "body.weight"]


def test_tied_weight_is_checked_in_all_its_modules():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 8)
            self.embed = nn.Embedding(8, 4, sparse=True)
            self.embed.weight = self.head.weight
            self.body = nn.Linear(4, 4)

    for model in (Tied(sparse=True), HeadFirst()):
        with pytest.raises(ValueError, match="embedding with sparse=True"):
            wrap(model, sparse={"head": True})


def test_selection_of_an_embedding_with_sparse_gradients_is_refused():
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="embedding with sparse=True"):
        wrap(model, sparse={"0": True})


def test_selection_of_other_modules_is_refused_where_channels_are_dropped():
    from sparseopt import RigLStruct, find_channel_groups

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        OwnLinear(8 * 4 * 4, 2),
    )  # fmt: skip
    method = RigLStruct(groups=find_channel_groups(model, torch.randn(2, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"'5.kernel', but the method drops entire channels"):
        wrap(model, method=method, sparse={OwnLinear: True})


def test_selection_holds_for_param_groups_that_come_later():
    model = LanguageModel()
    inner = torch.optim.SGD(model.head.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, sparse={nn.LSTM: True}, total_steps=1000)
    optimizer.add_param_group({"params": list(model.lstm.parameters())})
    assert names(optimizer) == LSTM_LAYERS[1:]
    twin = copy.deepcopy(optimizer)
    assert names(twin) == LSTM_LAYERS[1:]
    assert names(pickle.loads(pickle.dumps(optimizer))) == LSTM_LAYERS[1:]


@pytest.mark.parametrize("by", ["module", "parameter", "name"])
def test_param_groups_come_although_what_was_selected_has_left_the_model(by):
    model = nn.Sequential(OrderedDict(body=nn.Linear(8, 8), old=nn.Linear(8, 2)))
    selector = {"module": model.old, "parameter": model.old.weight, "name": "old"}[by]
    optimizer = wrap(model, sparse={selector: True})
    del model.old
    model.add_module("new", nn.Linear(8, 3))
    optimizer.add_param_group({"params": list(model.new.parameters())})
    assert "new.weight" in names(optimizer)


def messages(caplog, text):
    return [r.getMessage() for r in caplog.records if text in r.getMessage()]


def test_selected_weights_that_stay_dense_are_named(caplog):
    model = LanguageModel()
    model.lstm.requires_grad_(False)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(model, sparse={nn.LSTM: True})
    (line,) = messages(caplog, "frozen now")
    assert line.startswith("'lstm.weight_ih_l0', 'lstm.weight_hh_l0' are frozen now")
    caplog.clear()
    model = LanguageModel()
    inner = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        SparseOptimizer(inner, model, sparse={nn.LSTM: True, "embed": False}, total_steps=1000)
    (line,) = messages(caplog, "in no param group")
    assert "'lstm.weight_ih_l0', 'lstm.weight_hh_l0' stay dense" in line


def test_frozen_weight_that_the_user_leaves_dense_gives_no_log_line(caplog):
    model = LanguageModel()
    model.head.requires_grad_(False)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(model, sparse={"head": False, "lstm": True})
    assert messages(caplog, "frozen now") == []


@pytest.mark.parametrize("sparse", [None, {"*": True}, {nn.Module: True}])
@pytest.mark.parametrize("density", [None, 0.25])
def test_lazy_normalization_is_no_obstacle(sparse, density):
    model = nn.Sequential(nn.Linear(8, 8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))
    groups = [{"params": model.parameters()} | ({} if density is None else {"density": density})]
    inner = torch.optim.SGD(groups, lr=0.1)
    optimizer = SparseOptimizer(inner, model, sparse=sparse, total_steps=1000)
    assert names(optimizer) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("sparse", [None, {"*": True}, {"1": True}, lambda *_: True])
def test_lazy_linear_layer_is_refused_in_words(sparse):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.LazyLinear(4))
    with pytest.raises(ValueError, match="is lazy and has no shape yet"):
        wrap(model, sparse=sparse)


def test_weights_without_values_are_refused_by_name():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(ValueError, match="weight '0.weight' is on the meta device.*to_empty"):
        wrap(model)


@needs_kernels
def test_speed_up_names_the_sparse_weights_that_no_kernel_is_for():
    model = LanguageModel()
    optimizer = wrap(model, sparse={"*": True})
    with speed_up(model, optimizer) as handle:
        train(optimizer, lambda: lm_loss(model), steps=1)
        assert "run dense: embed.weight, lstm.weight_ih_l0, lstm.weight_hh_l0" in handle.report
        assert "head.weight" not in handle.report


def test_init_takes_patterns_the_named_ones_first():
    optimizer = wrap(
        LanguageModel(), sparse={"*": True}, density=0.2,
        init={"*": "erk", "head": 1.0, "lstm.*": 0.5},
    )  # fmt: skip
    assert densities(optimizer) == pytest.approx(
        {"embed.weight": 0.2, "lstm.weight_ih_l0": 0.5, "lstm.weight_hh_l0": 0.5, "head.weight": 1},
        abs=1e-3,
    )


def test_init_with_a_dense_head_spreads_the_rest_by_erk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))
    optimizer = wrap(model, init={"3": 1.0, "*": "erk"}, density=0.1)
    rest = erk_densities([(64, 64), (32, 64)], 0.1)
    assert [layer.live for layer in optimizer.layers] == [
        round(rest[0] * 4096), round(rest[1] * 2048), 320
    ]  # fmt: skip


def test_init_keeps_its_distribution_where_training_starts_denser():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))
    optimizer = wrap(model, method="granet", init={"3": 1.0, "*": "erk"}, density=0.1)
    rest = erk_densities([(64, 64), (32, 64)], 0.5)
    assert [layer.live for layer in optimizer.layers][:2] == [
        round(rest[0] * 4096), round(rest[1] * 2048)
    ]  # fmt: skip


@pytest.mark.parametrize("choice", [np.float32(0.25), Fraction(1, 4)])
def test_init_of_any_number_starts_as_dense_as_the_method_does(choice):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = wrap(model, method=Pruning(initial=0.5), init={"0": choice}, density=0.25)
    assert densities(optimizer) == {"0.weight": 0.5, "1.weight": 0.5}
    assert [layer.target for layer in optimizer.layers] == [16, 16]


@pytest.mark.parametrize("key", ["heads", "heads.*", "?"])
def test_init_with_a_name_or_pattern_that_matches_nothing_is_refused(key):
    with pytest.raises(ValueError, match="is not known"):
        wrap(LanguageModel(), init={key: 0.5})


def test_model_that_is_mostly_left_dense_is_said_to_be(caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(LanguageModel())
    (line,) = [r.getMessage() for r in caplog.records if "parameters can be sparse" in r.message]
    # 800 of 480 + 2,720 + 840 weights, biases included.
    assert line.startswith("20 % of the 4,040 trained parameters can be sparse.")
    assert "lstm (LSTM) 2,720, embed (Embedding) 480, head (Linear) 40" in line


def test_model_that_is_covered_gives_no_log_line(caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(LanguageModel(), sparse={nn.LSTM: True})
    assert not [r for r in caplog.records if "parameters can be sparse" in r.getMessage()]
