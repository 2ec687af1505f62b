"""Selections and models that are refused, and what the log says of weights that stay dense."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sparseopt import SparseOptimizer
from tests.support.looking import names
from tests.support.selecting import LanguageModel, OwnLinear
from tests.support.wrapping import wrap


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


@pytest.mark.parametrize(
    "sparse", [{"*": True, "0": False}, {nn.Module: True, "0": False}, {"*": True, "0*": False}]
)
def test_selection_refuses_only_what_remains_selected(sparse):
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True), nn.Linear(4, 2))
    assert names(wrap(model, sparse=sparse)) == ["1.weight"]
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    assert names(wrap(model, sparse=sparse)) == ["1.weight"]


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


def test_model_that_is_mostly_left_dense_is_said_to_be(caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(LanguageModel())
    (line,) = messages(caplog, "parameters can be sparse")
    # 800 of 480 + 2,720 + 840 weights, biases included.
    assert line.startswith("20 % of the 4,040 trained parameters can be sparse.")
    assert "lstm (LSTM) 2,720, embed (Embedding) 480, head (Linear) 40" in line


def test_model_that_is_covered_gives_no_log_line(caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        wrap(LanguageModel(), sparse={nn.LSTM: True})
    assert messages(caplog, "parameters can be sparse") == []
