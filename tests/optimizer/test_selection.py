"""Which weights are made sparse: `sparse=`."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparseopt import SparseOptimizer, speed_up
from sparseopt.masks.selection import select
from tests.speedup.kernels.dense import needs_kernels
from tests.support.looking import names
from tests.support.selecting import LSTM_LAYERS, LanguageModel, OwnLinear, lm_loss, train
from tests.support.wrapping import wrap


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


def test_graph_libraries_own_linear_layers_become_sparse():
    model = nn.Sequential(OwnLinear(8, 16), nn.ReLU(), OwnLinear(16, 2))
    optimizer = wrap(model, sparse={OwnLinear: True})
    assert names(optimizer) == ["0.kernel", "2.kernel"]
    train(optimizer, lambda: model(torch.randn(5, 8)).square().mean())
    assert not model[0].kernel[~optimizer.masks["0.kernel"]].any()


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


@needs_kernels
def test_speed_up_names_the_sparse_weights_that_no_kernel_is_for():
    model = LanguageModel()
    optimizer = wrap(model, sparse={"*": True})
    with speed_up(model, optimizer) as handle:
        train(optimizer, lambda: lm_loss(model), steps=1)
        assert "run dense: embed.weight, lstm.weight_ih_l0, lstm.weight_hh_l0" in handle.report
        assert "head.weight" not in handle.report
