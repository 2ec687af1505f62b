"""``save_sparse`` and ``load_sparse``: equal weights, small files, and errors that name them."""

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparseopt import (
    CheckpointError,
    CondensedLinear,
    CSRLinear,
    SparseOptimizer,
    condense,
    load_sparse,
    save_sparse,
)
from sparseopt.speedup import kernels
from sparseopt.speedup.inference import assembly, condensation
from sparseopt.speedup.inference.dense_implementations import Prepared, UnderAutocast
from sparseopt.speedup.inference.dense_layers import DenseLinear
from sparseopt.speedup.inference.files import format as file_format
from sparseopt.speedup.inference.files.positions import decode, encode
from sparseopt.speedup.inference.live_layers import Origin
from sparseopt.speedup.timing import Timing
from tests.speedup.inference.nets import Residual, Untraceable, quickly, settled, sparse_masks

pytest.importorskip("safetensors")


def pickled(model):
    return pickle.loads(pickle.dumps(model))


needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))


@pytest.mark.parametrize("density", [0.0, 1e-4, 0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 7, 8, 1000, 40_001])
def test_positions_are_decoded_exactly(size, density):
    mask = np.random.default_rng(0).random(size) < density
    positions = torch.from_numpy(np.flatnonzero(mask))
    name, code = encode(positions, size)
    assert torch.equal(decode(name, code, size), positions)
    assert len(code) <= (size + 7) // 8


@pytest.mark.parametrize("last", [253, 254, 255, 256, 509, 510, 511, 5000])
def test_gaps_of_any_length_are_decoded_exactly(last):
    positions = torch.tensor([0, 1, last])
    name, code = encode(positions, 50_000)
    assert name == "gaps"
    assert torch.equal(decode(name, code, 50_000), positions)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("bits", [0, 0], "2 bytes"),
        ("bits", [128], "after the last"),
        ("gaps", [255], "does not end"),
        ("gaps", [9], "after the last"),
    ],
)
def test_damaged_positions_raise_an_error(name, code, words):
    with pytest.raises(ValueError, match=words):
        decode(name, torch.tensor(code, dtype=torch.uint8), 7)


def test_model_is_loaded_bit_for_bit(tmp_path):
    model = settled(Residual())
    sparse_masks(model)
    save_sparse(tmp_path / "model.safetensors", model)
    again = settled(Residual(), seed=1)
    load_sparse(tmp_path / "model.safetensors", again)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_live_weights_that_are_zero_are_stored_with_the_masks_of_an_optimizer(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.1
    )
    with torch.no_grad():
        model[0].weight.view(-1)[optimizer.masks["0.weight"].flatten().nonzero()[0]] = 0
    path = tmp_path / "model.safetensors"
    save_sparse(path, optimizer)
    from safetensors.torch import load_file

    stored = load_file(path)["0.weight:values"]
    assert stored.numel() == int(optimizer.masks["0.weight"].sum())
    again = copy.deepcopy(model)
    nn.init.ones_(again[0].weight)
    load_sparse(path, again)
    assert torch.equal(again[0].weight, model[0].weight)


def test_value_that_is_too_large_for_the_format_is_not_saved_as_infinite(tmp_path):
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[1:] = 0
        model.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match="'weight' has values that are too large"):
        save_sparse(tmp_path / "model.safetensors", model, dtype=torch.float16)
    with torch.no_grad():
        model.weight[0, 0] = torch.inf
    save_sparse(tmp_path / "model.safetensors", model, dtype=torch.float16)


def test_format_that_is_no_dtype_is_refused(tmp_path):
    with pytest.raises(TypeError, match="dtype='bfloat16' must be a floating-point torch.dtype"):
        save_sparse(tmp_path / "model.safetensors", nn.Linear(4, 4), dtype="bfloat16")


@pytest.mark.parametrize(("old", "new"), [(b'"shapes"', b'"shape5"'), (b"[64,", b"[64;")])
def test_damaged_header_is_named(tmp_path, old, new):
    path = tmp_path / "model.safetensors"
    model = nn.Linear(64, 64)
    sparse_masks(model, 0.1)
    save_sparse(path, model)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(CheckpointError, match=f"{path.name} is "):
        load_sparse(path, model)


def test_masks_of_another_model_are_refused(tmp_path):
    layer = nn.Linear(64, 64)
    optimizer = SparseOptimizer(
        torch.optim.SGD(layer.parameters()), layer, method="static", density=0.1
    )
    around = nn.ModuleDict({"net": layer})
    with pytest.raises(ValueError, match="no weight 'weight', for which the optimizer has a mask"):
        save_sparse(tmp_path / "model.safetensors", around, optimizer)


@pytest.mark.parametrize(("dtype", "most"), [(None, 0.14), (torch.bfloat16, 0.09)])
def test_file_at_a_density_of_a_tenth_is_much_smaller_than_the_dense_weights(tmp_path, dtype, most):
    model = nn.Sequential(nn.Conv2d(128, 128, 3), nn.Conv2d(128, 256, 1), nn.Linear(512, 512))
    sparse_masks(model, 0.1)
    save_sparse(tmp_path / "model.safetensors", model, dtype=dtype)
    dense = 4 * sum(layer.weight.numel() for layer in model)
    assert (tmp_path / "model.safetensors").stat().st_size <= most * dense


def test_values_in_bfloat16_are_the_rounded_weights(tmp_path):
    model = nn.Linear(64, 64)
    sparse_masks(nn.Sequential(model), 0.1)
    save_sparse(tmp_path / "model.safetensors", model, dtype=torch.bfloat16)
    again = nn.Linear(64, 64)
    load_sparse(tmp_path / "model.safetensors", again)
    assert torch.equal(again.weight, model.weight.bfloat16().float())
    assert torch.equal(again.bias, model.bias)


def test_tied_weights_are_stored_once_and_loaded_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight

    model = Tied()
    with torch.no_grad():
        model.first.weight[torch.rand(16, 16) < 0.8] = 0
    save_sparse(tmp_path / "model.safetensors", model)
    again = Tied()
    load_sparse(tmp_path / "model.safetensors", again)
    assert torch.equal(again.first.weight, model.first.weight)
    assert again.second.weight is again.first.weight


@pytest.fixture
def sparse_is_fastest(monkeypatch):
    def given_times(calls, **_):
        return {name: Timing((1.0 if name == "sparse, float32" else 2.0,) * 4) for name in calls}

    def all_live(candidates, device):
        return {one.site.name: "live" if "live" in one.layers else "dense" for one in candidates}

    monkeypatch.setattr(condensation, "time_in_turn", given_times)
    monkeypatch.setattr(assembly, "choose_layers", all_live)


@needs_kernels
@pytest.mark.usefixtures("sparse_is_fastest")
@pytest.mark.parametrize("net", [Residual, Untraceable])
def test_condensed_model_loads_other_weights_under_other_masks(tmp_path, net):
    """The BatchNorms of the file are folded in."""
    one, other = settled(net()), settled(net(), seed=5)
    x = torch.randn(4, 3 if net is Residual else 4, 8, 8)
    sparse_masks(other, 0.3, seed=7)
    save_sparse(tmp_path / "other.safetensors", other)
    masks = sparse_masks(one, 0.2)
    model = condense(one, masks, example_inputs=x, rounds=1, compiled=False).model
    load_sparse(tmp_path / "other.safetensors", model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.usefixtures("sparse_is_fastest")
def test_condensed_model_loads_biases_and_norms_that_have_masks(tmp_path):
    """``rigl-struct`` masks whatever belongs to a channel, also vectors."""
    x = torch.randn(4, 3, 8, 8)
    trained = []
    for seed in (0, 1):
        model = settled(Residual(), seed)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        trained.append(
            SparseOptimizer(
                inner, model, method="rigl-struct", density=0.5, seed=seed, example_inputs=(x,)
            )
        )
    one, other = trained
    assert any(mask.dim() == 1 and not mask.all() for mask in other.masks.values())
    condensed = condense(one.model, one, example_inputs=x, rounds=1, compiled=False).model
    save_sparse(tmp_path / "other.safetensors", other)
    load_sparse(tmp_path / "other.safetensors", condensed)
    with torch.no_grad():
        torch.testing.assert_close(condensed(x), other.model(x), rtol=1e-4, atol=1e-5)


class Auxiliary(nn.Module):
    """It has a branch for training, which a graph of its inference leaves out."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.branch = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        y = self.first(x).relu()
        return (self.last(y), self.branch(y)) if self.training else self.last(y)


@needs_kernels
@pytest.mark.usefixtures("sparse_is_fastest")
@pytest.mark.parametrize("copied", [nn.Module.eval, copy.deepcopy, pickled])
def test_condensed_model_loads_a_file_with_parameters_that_inference_does_not_need(
    tmp_path, copied
):
    one, other, x = Auxiliary().eval(), Auxiliary().eval(), torch.randn(4, 16)
    save_sparse(tmp_path / "other.safetensors", other)
    condensed = copied(quickly(one, sparse_masks(one), x, scripted=False).model)
    load_sparse(tmp_path / "other.safetensors", condensed)
    with torch.no_grad():
        torch.testing.assert_close(condensed(x), other(x))
    save_sparse(tmp_path / "larger.safetensors", nn.ModuleDict({"first": one, "more": other}))
    with pytest.raises(CheckpointError, match=r"'more\.branch\.bias' is not in the model"):
        load_sparse(tmp_path / "larger.safetensors", condensed)


@pytest.mark.parametrize("kind", [CSRLinear, CondensedLinear])
def test_layers_by_sparse_products_of_torch_refuse_a_file(tmp_path, kind):
    mask = torch.eye(8, dtype=torch.bool)
    layer = kind(torch.randn(8, 8) * mask, mask, None)
    save_sparse(tmp_path / "model.safetensors", nn.Sequential(nn.Linear(8, 8, bias=False)))
    with pytest.raises(CheckpointError, match=rf"layer '0' .* is a {kind.__name__}"):
        load_sparse(tmp_path / "model.safetensors", nn.Sequential(layer))


@needs_kernels
@pytest.mark.usefixtures("sparse_is_fastest")
def test_condensed_model_can_not_be_saved(tmp_path):
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    condensed = condense(model, sparse_masks(model), example_inputs=x, rounds=1, compiled=False)
    with pytest.raises(CheckpointError, match="save the original model"):
        save_sparse(tmp_path / "model.safetensors", condensed.model)


def test_frozen_program_can_not_load_a_file(tmp_path, monkeypatch):
    def given_times(calls, **_):
        return {name: Timing((2.0 - ("Script" in name),) * 4) for name in calls}

    monkeypatch.setattr(condensation, "time_in_turn", given_times)
    model = nn.Sequential(nn.Linear(8, 8))
    save_sparse(tmp_path / "model.safetensors", model)
    condensed = condense(model, "nonzero", example_inputs=torch.randn(1, 8), compiled=False)
    with pytest.raises(CheckpointError, match="frozen program"):
        load_sparse(tmp_path / "model.safetensors", condensed.model)


@torch.no_grad()
@pytest.mark.parametrize(
    ("chosen", "dtype"),
    [
        ("as it is", torch.float32),
        ("channels-last", torch.float32),
        ("as it is", torch.bfloat16),
        ("channels-last", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("copied", [nn.Module.eval, pickled, torch.compile])
def test_condensed_model_with_the_original_layers_is_saved_under_the_original_names(
    tmp_path, monkeypatch, times, chosen, dtype, copied
):
    monkeypatch.setattr(assembly, "has_bfloat16", lambda _: True)
    times[f"{chosen}, {str(dtype).removeprefix('torch.')}"] = 1.0
    model, again, x = settled(Residual()), settled(Residual(), seed=5), torch.randn(2, 3, 8, 8)
    masks = sparse_masks(model)
    condensed = copied(quickly(model, masks, x, precision="fastest", scripted=False).model)
    path = tmp_path / "model.safetensors"
    for given in ("nonzero", masks):
        save_sparse(path, condensed, given)
        load_sparse(path, again)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value.to(dtype).to(value.dtype)), name
    expected = {name: value.clone() for name, value in condensed.state_dict().items()}
    for value in condensed.state_dict().values():
        value.zero_()
    load_sparse(path, condensed)
    for name, value in condensed.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_model_under_autocast_is_saved_under_the_original_names(tmp_path):
    model, again = nn.Linear(8, 8), nn.Linear(8, 8)
    save_sparse(tmp_path / "file", UnderAutocast(Prepared(model, None), "cpu", torch.bfloat16))
    load_sparse(tmp_path / "file", again)
    assert torch.equal(again.weight, model.weight)
    load_sparse(tmp_path / "file", UnderAutocast(Prepared(again, None), "cpu", torch.bfloat16))


def test_files_that_do_not_fit_raise_an_error_and_load_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    save_sparse(path, nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(4, 4)}))
    model = nn.ModuleDict({"a": nn.Linear(8, 9), "c": nn.Linear(4, 4)})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_sparse(path, model)
    for words in (
        "'c.weight' is not in the file",
        "'b.bias' is not in the model",
        "'a.weight' has the shape (8, 8), but (9, 8) in the model",
    ):
        assert words in str(caught.value)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())


def test_files_of_another_kind_raise_an_error(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not written by save_sparse"):
        load_sparse(tmp_path / "plain.safetensors", nn.Linear(2, 1))
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_sparse(tmp_path / "no.safetensors", nn.Linear(2, 1))


def test_dropped_weights_that_are_not_zero_raise_an_error_that_names_them(tmp_path):
    model = nn.Linear(4, 4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    with pytest.raises(CheckpointError, match="'weight' has dropped weights that are not zero"):
        save_sparse(tmp_path / "model.safetensors", model, {"weight": mask})
    with pytest.raises(TypeError, match="dtype="):
        save_sparse(tmp_path / "model.safetensors", model, dtype=torch.int8)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are of POSIX")
def test_file_has_the_mode_of_other_new_files(tmp_path):
    save_sparse(tmp_path / "model.safetensors", nn.Linear(4, 4))
    torch.save({}, tmp_path / "model.pt")
    mode = (tmp_path / "model.pt").stat().st_mode
    assert (tmp_path / "model.safetensors").stat().st_mode == mode
    (tmp_path / "model.safetensors").chmod(0o640)
    save_sparse(tmp_path / "model.safetensors", nn.Linear(4, 4))
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_file_is_loaded_into_a_model_and_not_into_its_optimizer(tmp_path):
    model = nn.Linear(8, 8)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", density=0.5)
    save_sparse(tmp_path / "model.safetensors", optimizer)
    with pytest.raises(TypeError, match=r"model=SparseOptimizer.*must be a torch.nn.Module"):
        load_sparse(tmp_path / "model.safetensors", optimizer)


def test_file_stays_complete_if_overwriting_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = nn.Linear(64, 8)
    save_sparse(path, model)
    before = path.read_bytes()

    def fail_half_way(tensors, filename, metadata):
        Path(filename).write_bytes(before[: len(before) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(file_format.library().torch, "save_file", fail_half_way)
    with pytest.raises(OSError, match="no space"):
        save_sparse(path, nn.Linear(64, 8))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_module_names_with_a_colon_are_loaded(tmp_path):
    model = nn.ModuleDict({"user:buys": nn.Linear(16, 4)})
    other = nn.ModuleDict({"user:buys": nn.Linear(16, 4)})
    save_sparse(tmp_path / "model", model)
    load_sparse(tmp_path / "model", other)
    assert torch.equal(other["user:buys"].weight, model["user:buys"].weight)


def test_folded_dense_layers_can_not_be_saved(tmp_path):
    layer = DenseLinear(torch.float32, Origin("weight", "bias"))
    layer.set_weights(torch.randn(4, 16), None)
    with pytest.raises(CheckpointError, match="folded"):
        save_sparse(tmp_path / "model", nn.Sequential(layer))
    assert not list(tmp_path.iterdir())


class WithExtraState(nn.Linear):
    """A layer with extra state, which is neither a parameter nor a buffer."""

    def __init__(self, extra=None):
        super().__init__(8, 8)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


@pytest.mark.parametrize(
    "extra", [{"scale": 0.5, "names": ["a", "b"]}, [1, None, True], None, torch.arange(5)]
)
def test_extra_state_is_loaded(tmp_path, extra):
    model, again = nn.Sequential(WithExtraState(extra)), nn.Sequential(WithExtraState("other"))
    save_sparse(tmp_path / "model", model)
    load_sparse(tmp_path / "model", again)
    assert torch.equal(again[0].weight, model[0].weight)
    if isinstance(extra, torch.Tensor):
        assert torch.equal(again[0].extra, extra)
    else:
        assert again[0].extra == extra


@pytest.mark.parametrize("extra", [{1: "a"}, (1, 2), object(), {"x": torch.ones(2)}])
def test_extra_state_that_needs_a_pickle_raises_an_error_that_names_it(tmp_path, extra):
    model = nn.Sequential(WithExtraState(extra))
    with pytest.raises(CheckpointError, match=r"'0\._extra_state'.*without pickle"):
        save_sparse(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_extra_state_that_the_model_or_the_file_lacks_is_named(tmp_path):
    save_sparse(tmp_path / "with", nn.Sequential(WithExtraState("a")))
    save_sparse(tmp_path / "without", nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(CheckpointError, match="'0._extra_state' is not in the model"):
        load_sparse(tmp_path / "with", nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(CheckpointError, match="'0._extra_state' is not in the file"):
        load_sparse(tmp_path / "without", nn.Sequential(WithExtraState()))


def test_weights_that_torch_pruned_raise_an_error_until_their_pruning_is_removed(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64))
    prune.l1_unstructured(model[0], "weight", 0.9)
    with pytest.raises(CheckpointError, match=r"'0.weight_orig'.*prune.remove\(module, 'weight'\)"):
        save_sparse(tmp_path / "model", model)
    prune.remove(model[0], "weight")
    save_sparse(tmp_path / "model", model)
    again = nn.Sequential(nn.Linear(64, 64))
    load_sparse(tmp_path / "model", again)
    assert torch.equal(again[0].weight, model[0].weight)


def test_pruned_bias_is_stored_with_its_pruning(tmp_path):
    model, again = nn.Sequential(nn.Linear(64, 64)), nn.Sequential(nn.Linear(64, 64))
    for one in (model, again):
        prune.random_unstructured(one[0], "bias", 0.5)
    save_sparse(tmp_path / "model", model)
    load_sparse(tmp_path / "model", again)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    x = torch.randn(3, 64)
    assert torch.equal(again(x), model(x))


def test_model_on_the_meta_device_raises_an_error(tmp_path):
    save_sparse(tmp_path / "model", nn.Linear(4, 4))
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="model_or_optimizer has no values.*'weight'"):
        save_sparse(tmp_path / "other", model)
    with pytest.raises(ValueError, match="model has no values.*'weight'"):
        load_sparse(tmp_path / "model", model)


@needs_kernels
@pytest.mark.usefixtures("sparse_is_fastest")
def test_condensed_model_that_loads_in_inference_mode_has_no_inference_tensors(tmp_path):
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    masks = sparse_masks(model)
    save_sparse(tmp_path / "model", model)
    condensed = condense(model, masks, example_inputs=x, rounds=1, compiled=False).model
    with torch.inference_mode():
        load_sparse(tmp_path / "model", condensed)
    assert not any(buffer.is_inference() for buffer in condensed.buffers())


@needs_kernels
def test_model_condensed_under_autocast_loads_a_file(tmp_path, times):
    times["sparse, bfloat16"] = 1.0
    one, other = settled(Residual()), settled(Residual(), seed=5)
    x = torch.randn(4, 3, 8, 8)
    masks = sparse_masks(one)
    sparse_masks(other, seed=3)
    save_sparse(tmp_path / "other", other)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        condensed = condense(one, masks, example_inputs=x, rounds=1, compiled=False)
        assert condensed.report.chosen == "sparse"
        load_sparse(tmp_path / "other", condensed.model)
        torch.testing.assert_close(condensed.model(x), other(x), rtol=0.05, atol=0.05)


@torch.no_grad()
def test_float64_weights_are_loaded_into_folded_layers_without_rounding(tmp_path, times):
    times["folded, float64"] = 1.0
    one, other = (settled(Residual(), seed=seed).double() for seed in (0, 5))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    masks = sparse_masks(one)
    sparse_masks(other, seed=3)
    save_sparse(tmp_path / "other", other)
    condensed = condense(one, masks, example_inputs=x, rounds=1, compiled=False)
    assert condensed.report.chosen == "folded"
    load_sparse(tmp_path / "other", condensed.model)
    torch.testing.assert_close(condensed.model(x), other(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", ["folded, float32", "as it is, float32"])
def test_file_of_a_module_that_is_used_twice_and_has_extra_state_fits_the_condensed_model(
    tmp_path, times, implementation
):
    def make():
        class Part(nn.Module):
            get_extra_state = WithExtraState.get_extra_state
            set_extra_state = WithExtraState.set_extra_state

            def __init__(self):
                super().__init__()
                self.inside, self.extra = nn.Linear(16, 16), {"scale": 0.5}

            def forward(self, x):
                return self.inside(x).relu()

        part = Part()
        return nn.Sequential(part, nn.Linear(16, 16), part)

    times[implementation] = 1.0
    model, other, x = make(), make(), torch.randn(4, 16)
    sparse_masks(model)
    sparse_masks(other, seed=1)
    save_sparse(tmp_path / "model.safetensors", model)
    condensed = quickly(other, "nonzero", x).model
    load_sparse(tmp_path / "model.safetensors", condensed)
    with torch.no_grad():
        torch.testing.assert_close(condensed(x), model(x))


@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (torch.eye(4).to_sparse(), "'own' has the layout torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "'own' has the number format torch.complex128"),
    ],
)
def test_buffer_that_a_file_can_not_hold_is_named(tmp_path, buffer, words):
    model = nn.Linear(16, 16)
    model.register_buffer("own", buffer)
    with pytest.raises(CheckpointError, match=words):
        save_sparse(tmp_path / "model.safetensors", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_values_in_eight_bits_are_the_rounded_weights(tmp_path, dtype):
    model = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        model.weight.mul_(torch.rand(16, 16) < 0.2)
    save_sparse(tmp_path / "model.safetensors", model, dtype=dtype)
    loaded = nn.Linear(16, 16, bias=False)
    load_sparse(tmp_path / "model.safetensors", loaded)
    assert torch.equal(loaded.weight, model.weight.to(dtype).float())
    with torch.no_grad():
        model.weight[model.weight != 0] = 1e6
    with pytest.raises(CheckpointError, match="too large for dtype"):
        save_sparse(tmp_path / "model.safetensors", model, dtype=dtype)
