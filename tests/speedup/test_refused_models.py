"""``condense``, ``compact`` and ``save_sparse`` say what is wrong with a model that they refuse."""

import pytest
import torch
from torch import nn

from sparseopt import compact, condense, save_sparse


def two_layers():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        model[0].weight[::2] = 0
        model[0].bias[::2] = 0
    return model


def by_condense(model, x, folder):
    condense(model, "nonzero", example_inputs=x, rounds=1, compiled=False)


def by_compact(model, x, folder):
    compact(model, "nonzero", example_inputs=x)


def by_save_sparse(model, x, folder):
    save_sparse(folder / "model.safetensors", model, "nonzero")


EACH = pytest.mark.parametrize("call", [by_condense, by_compact, by_save_sparse])


@EACH
@pytest.mark.parametrize("given", [torch.relu, {"weight": torch.ones(2, 2)}])
def test_what_is_no_module_is_named_by_its_class(call, given, tmp_path):
    if call is by_save_sparse:
        pytest.importorskip("safetensors")
    with pytest.raises(TypeError, match=f"not a {type(given).__name__}") as caught:
        call(given, torch.randn(4, 16), tmp_path)
    assert len(str(caught.value)) < 100


@EACH
def test_lazy_module_is_named(call, tmp_path):
    if call is by_save_sparse:
        pytest.importorskip("safetensors")
    model = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 8))
    with pytest.raises(ValueError, match=r"'0.weight' is lazy: run one input"):
        call(model, torch.randn(4, 16), tmp_path)


@pytest.mark.parametrize("call", [by_condense, by_compact])
def test_module_of_an_exported_program_is_refused(call, tmp_path):
    x = torch.randn(4, 16)
    model = torch.export.export(two_layers().eval(), (x,)).module()
    with pytest.raises(ValueError, match="pass the model that was exported"):
        call(model, x, tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compact_refuses_torchscript():
    x = torch.randn(4, 16)
    with pytest.raises(ValueError, match="is TorchScript.*pass the model that it was made of"):
        compact(torch.jit.trace(two_layers(), x), "nonzero", example_inputs=x)


def test_compact_refuses_inputs_without_elements():
    with pytest.raises(ValueError, match=r"without elements only, \(0, 16\) for example"):
        compact(two_layers(), "nonzero", example_inputs=torch.randn(0, 16))


def test_compact_takes_a_model_that_inference_mode_made():
    with torch.inference_mode():
        model = two_layers()
    x = torch.randn(4, 16)
    smaller = compact(model, "nonzero", example_inputs=x).model
    assert smaller[0].weight.shape == (16, 16)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x))
    smaller(x).sum().backward()
