"""Explicit settings are followed, or raise an error or a warning; none is ignored."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import make


class Own(nn.Module):
    """A user's own linear map, as in graph networks and fused experts."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / 8)
        self.scale = nn.Parameter(torch.ones(shape[-1]))

    def forward(self, x):
        return x @ self.weight * self.scale


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.own = Own(16, 16)
        self.experts = Own(4, 16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens):
        hidden = self.own(self.lstm(self.embedding(tokens))[0])
        return self.head(self.experts(hidden.unsqueeze(1)).mean(1))


def recurrent():
    torch.manual_seed(0)
    return Recurrent()


def steps_of(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randint(20, (4, 7))).square().mean().backward()
        optimizer.step()


def groups_of(model, **densities):
    return [
        {"params": list(child.parameters()), **({"density": densities[name]} if asks else {})}
        for name, child in model.named_children()
        for asks in [name in densities]
    ]


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_density_of_a_group_is_followed_whatever_module_has_the_weight(method, caplog):
    model = recurrent()
    asked = {"lstm": 0.3, "own": 0.5, "experts": 0.25}
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = SparseOptimizer(
            sgd(groups_of(model, **asked)),
            model,
            method=method,
            init={},
            density=0.2,
            total_steps=40,
            delta_t=4,
        )
    assert "'lstm.weight_ih_l0'" in caplog.messages[0]
    assert "'experts.weight'" in caplog.messages[0]
    assert list(optimizer.masks) == [
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "own.weight",
        "experts.weight",
        "head.weight",
    ]
    steps_of(model, optimizer, 32)
    assert_dropped_are_fresh(optimizer)
    for layer in optimizer.layers:
        density = asked.get(layer.name.split(".")[0], 0.2)
        assert layer.live == int(layer.mask.sum()) == round(density * layer.numel)
    assert model.embedding.weight.all()


def test_flops_know_the_masks_of_such_weights():
    model = recurrent()
    inner = sgd(groups_of(model, lstm=0.3, own=0.5))
    optimizer = SparseOptimizer(inner, model, method="static", init={}, density=0.2)
    report = optimizer.flops(model, torch.zeros(2, 7, dtype=torch.long))
    shares = {layer.name: layer for layer in report.layers}
    assert shares["own.weight"].sparse == pytest.approx(0.5 * shares["own.weight"].dense)
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        # All entries of biases are added.
        ratio = shares[name].sparse / shares[name].dense
        assert 0.3 <= ratio < 0.35


def test_masks_come_back_with_a_checkpoint():
    runs = []
    for seed in (1, 2):
        model = recurrent()
        inner = sgd(groups_of(model, lstm=0.3))
        runs.append((model, SparseOptimizer(inner, model, method="static", seed=seed)))
    (model, optimizer), (other, resumed) = runs
    steps_of(model, optimizer, 2)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, resumed.masks[name])


def test_group_that_comes_later_is_followed_too():
    model = recurrent()
    optimizer = SparseOptimizer(
        sgd(model.head.parameters()), model, method="set", total_steps=40, delta_t=4
    )
    optimizer.add_param_group({"params": model.lstm.parameters(), "density": 0.3})
    assert list(optimizer.masks) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    steps_of(model, optimizer, 12)
    assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize(
    ("pick", "named"),
    [
        (lambda model: [model.embedding.weight], r"embedding\.weight"),
        (lambda model: [model.head.bias, model.own.scale], r"head\.bias, own\.scale"),
    ],
)
def test_density_that_nothing_in_the_group_can_have_is_refused(pick, named):
    model = recurrent()
    chosen = pick(model)
    rest = [p for p in model.parameters() if not any(p is one for one in chosen)]
    groups = [{"params": rest}, {"params": chosen, "density": 0.3}]
    with pytest.raises(ValueError, match=rf"param group 1 asks for density=0\.3.*{named}"):
        SparseOptimizer(sgd(groups), model, method="static")
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_embedding_beside_weights_that_can_be_sparse_stays_dense_and_is_named(caplog):
    model = recurrent()
    groups = [{"params": model.parameters(), "density": 0.3}]
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = SparseOptimizer(sgd(groups), model, method="static")
    assert "embedding.weight" not in optimizer.masks
    assert "'embedding.weight' stays dense, although a param group asks" in caplog.messages[0]


def test_most_of_a_model_of_unknown_modules_is_said_to_stay_dense(caplog):
    def mostly_experts():
        return nn.ModuleDict({"experts": Own(4, 64, 64), "head": nn.Linear(64, 64)})

    model = mostly_experts()
    with caplog.at_level(logging.WARNING, "sparseopt"):
        SparseOptimizer(sgd(model.parameters()), model, method="static")
    (line,) = caplog.messages
    assert line.startswith("20 % of the 20,")
    assert "The rest is in experts (Own) 16,448, head (Linear) 64." in line
    assert "sparse=" in line
    caplog.clear()
    model = mostly_experts()
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = SparseOptimizer(sgd(groups_of(model, experts=0.1)), model, method="static")
    assert "experts.weight" in optimizer.masks
    assert not any("The rest is in" in line for line in caplog.messages)


def test_ordinary_models_give_no_log_line(caplog):
    model = make()
    with caplog.at_level(logging.WARNING, "sparseopt"):
        SparseOptimizer(sgd(model.parameters()), model, method="static")
    assert caplog.messages == []


def test_weight_norms_magnitudes_are_no_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(8, 32, 3)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv1d(32, 32, 3)),
    )
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.named_parameters(), lr=0.1), density=0.2, init={}, method="static"
    )
    assert list(optimizer.masks) == [f"{i}.parametrizations.weight.original1" for i in (0, 2)]
    for module in (model[0], model[2]):
        assert float((module.weight != 0).float().mean()) == pytest.approx(0.2, abs=0.01)
        assert (module.weight != 0).flatten(1).any(1).all()


def test_param_group_can_ask_for_what_weight_norm_computes_from():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(32, 32)), nn.Linear(32, 4))
    groups = [{"params": model[0].parameters(), "density": 0.2}, {"params": model[1].parameters()}]
    optimizer = SparseOptimizer(sgd(groups), model, method="static", init={})
    assert list(optimizer.masks) == ["0.parametrizations.weight.original1", "1.weight"]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
    assert int((model[0].weight != 0).sum()) == round(0.2 * 32 * 32)


@pytest.mark.parametrize("with_model", [True, False])
def test_weights_that_are_frozen_now_are_said_to_stay_dense(caplog, with_model):
    model = make()
    model.conv1.requires_grad_(False)
    model.fc1.requires_grad_(False)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = SparseOptimizer(
            sgd(model.named_parameters()), model if with_model else None, method="static"
        )
    assert list(optimizer.masks) == ["conv2.weight", "fc2.weight"]
    assert any(
        line.startswith("'conv1.weight', 'fc1.weight' are frozen now and will stay dense")
        for line in caplog.messages
    )


def test_layer_that_is_meant_to_be_dense_may_be_frozen(caplog):
    model = make()
    model.conv1.requires_grad_(False)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        SparseOptimizer(sgd(groups_of(model, conv1=False)), model, method="static")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"delta_t": 1, "total_steps": 200}, "74%"),
        ({"delta_t": 2, "total_steps": 200}, "37%"),
        ({"delta_t": 2, "t_end": 150}, "49%"),
        ({"delta_t": 2}, "50%"),
        ({"delta_t": 1, "total_steps": 200, "method": "pruning"}, "74%"),
    ],
)
def test_updates_in_more_than_a_third_of_the_steps_are_warned_of(settings, share):
    model = make()
    message = rf"delta_t={settings['delta_t']}: {share} of the steps move masks instead"
    with pytest.warns(UserWarning, match=message) as said:
        SparseOptimizer(sgd(model.parameters()), model, **settings)
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"delta_t": 3, "total_steps": 200},
        {"delta_t": 3},
        {"delta_t": 1, "t_end": 50, "total_steps": 200},
        {"delta_t": 1, "total_steps": 200, "method": "static"},
        {"delta_t": 1, "total_steps": 200, "density": 1.0},
    ],
)
def test_updates_in_at_most_a_third_of_the_steps_are_not_warned_of(settings):
    model = make()
    SparseOptimizer(sgd(model.parameters()), model, **settings)


def checkpoint_of(density, **settings):
    model = make()
    optimizer = SparseOptimizer(
        sgd(model.parameters()), model, density=density, total_steps=400, **settings
    )
    return model, optimizer, copy.deepcopy((model.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("method", ["rigl", "pruning", "static"])
def test_another_density_on_resume_is_warned_of(method):
    _, _, saved = checkpoint_of(0.2, method=method)
    model, optimizer, _ = checkpoint_of(0.1, method=method)
    model.load_state_dict(saved[0])
    with pytest.warns(UserWarning, match=r"density is used: 0\.2\. .*not: 0\.0998") as said:
        optimizer.load_state_dict(saved[1])
    assert len(said) == 1
    assert said[0].filename == __file__
    assert sum(layer.target for layer in optimizer.layers) == pytest.approx(
        0.2 * sum(layer.numel for layer in optimizer.layers), abs=4
    )


@pytest.mark.parametrize("settings", [{}, {"mask": "nonzero"}, {"init": "er"}])
def test_same_density_or_one_that_says_nothing_is_silent(settings):
    _, _, saved = checkpoint_of(0.2)
    model, optimizer, _ = checkpoint_of(0.2, **settings)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert optimizer.density == pytest.approx(0.2, abs=0.01)


def test_layers_that_n_of_m_keeps_dense_are_named(caplog):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 5)
    )
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = SparseOptimizer(
            sgd(model.parameters()), model, method="n:m", density=0.5, init={}, total_steps=1000
        )
    (line,) = caplog.messages
    assert "dense: 0.weight (8x3x3x3)." in line
    assert "init={}" in line
    assert [layer.density for layer in optimizer.layers] == [1.0, 0.5, 0.5]


def test_summary_shows_where_density_is_going():
    model = make()
    optimizer = SparseOptimizer(
        sgd(model.parameters()), model, method="pruning", density=0.1, init={}, total_steps=200
    )
    header, _, first, *_, total = optimizer.summary().splitlines()
    columns = header.split()
    assert dict(zip(columns, first.split(), strict=True))["density"] == "1.0000"
    assert dict(zip(columns, first.split(), strict=True))["target"] == "0.1019"
    assert total.split()[1:3] == ["1.0000", "0.1003"]
