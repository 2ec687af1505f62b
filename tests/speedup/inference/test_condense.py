"""``condense``: the model that it returns, its report, and models that it can't fold."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparseopt import Condensation, SparseOptimizer, condense
from sparseopt.speedup import kernels
from sparseopt.speedup.inference import assembly, condensation
from sparseopt.speedup.inference.live_layers import LiveLinear
from sparseopt.speedup.inference.regions import Candidates, cheapest_chain
from sparseopt.speedup.timing import Timing
from tests.speedup.inference.nets import (
    Residual,
    Untraceable,
    live_layers,
    quickly,
    settled,
    sparse_masks,
)

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
SPARSE = pytest.param("sparse", marks=needs_kernels)


@pytest.mark.parametrize("batch", [1, 20])
def test_condensed_model_computes_the_same_and_the_original_is_not_changed(batch):
    model = settled(Residual()).train()
    masks = sparse_masks(model)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x = torch.randn(batch, 3, 8, 8)
    condensed = quickly(model, masks, x)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())
    assert not condensed.model.training
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model.eval()(x), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_sparse_model_is_returned_if_it_is_fastest_and_stores_live_weights_only(times):
    times["sparse, float32"] = 1.0
    model = settled(Residual())
    masks = sparse_masks(model)
    x = torch.randn(4, 3, 8, 8)
    condensed = quickly(model, masks, x)
    report = condensed.report
    assert (report.chosen, report.precision, report.speed_up) == ("sparse", "float32", 9.0)
    assert {layer.name for layer in report.layers} == {
        name.removesuffix(".weight") for name in masks
    }
    assert {layer.chosen for layer in report.layers} == {"live"}
    stored = sum(layer.values.numel() for layer in live_layers(condensed.model))
    assert stored == sum(int(mask.sum()) for mask in masks.values())
    assert "returned: sparse, float32: 1000 ms, 9.00 x as fast as the fastest dense: " in str(
        report
    )


@pytest.mark.parametrize("fastest", ["as it is", "channels-last", "folded", "frozen TorchScript"])
def test_dense_implementation_that_is_faster_is_returned(times, fastest):
    times[f"{fastest}, float32"], times["sparse, float32"] = 1.0, 2.0
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x)
    assert condensed.report.chosen == fastest
    assert live_layers(condensed.model) == []
    assert {layer.chosen for layer in condensed.report.layers} == {"dense"}
    for inputs in (x, torch.randn(3, 3, 10, 12)):
        with torch.no_grad():
            found = condensed.model(inputs)
            torch.testing.assert_close(found, model(inputs), rtol=1e-4, atol=1e-5)


def test_implementation_that_is_faster_only_within_the_spread_is_not_returned(monkeypatch):
    def given_times(calls, **_):
        own = {"as it is, float32": (2.0, 2.0, 2.0, 2.0), "sparse, float32": (1.0, 1.0, 2.1, 2.1)}
        return {name: Timing(own.get(name, (9.0,) * 4)) for name in calls}

    monkeypatch.setattr(condensation, "time_in_turn", given_times)
    model = settled(Residual())
    condensed = quickly(model, sparse_masks(model), torch.randn(4, 3, 8, 8))
    assert condensed.report.chosen == "as it is"


@pytest.mark.skipif(not assembly.has_bfloat16(torch.device("cpu")), reason="no bfloat16 here")
def test_bfloat16_that_is_faster_is_reported_first_and_returned_only_on_request(times):
    times.update({"as it is, float32": 2.0, "as it is, bfloat16": 1.0})
    model = settled(Residual())
    masks, x = sparse_masks(model), torch.randn(4, 3, 8, 8)
    same = quickly(model, masks, x)
    assert (same.report.chosen, same.report.precision) == ("as it is", "float32")
    assert str(same.report).startswith(
        "faster than the returned model: as it is, bfloat16 takes 0.50 of its time; "
        "precision='fastest' returns it"
    )
    fastest = quickly(model, masks, x, precision="fastest")
    assert (fastest.report.chosen, fastest.report.precision) == ("as it is", "bfloat16")
    assert str(fastest.report).startswith("returned: as it is, bfloat16")
    with torch.no_grad():
        found = fastest.model(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, model(x), rtol=0.05, atol=0.05)


@needs_kernels
def test_condensed_model_is_copied_pickled_and_saved(times, tmp_path):
    times["sparse, float32"] = 1.0
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x).model
    with torch.no_grad():
        expected = condensed(x)
        assert torch.equal(copy.deepcopy(condensed)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(condensed))(x), expected)


@needs_kernels
@pytest.mark.parametrize("batch", [1, 8])
def test_condensed_model_is_exported_with_the_registered_operators(times, batch):
    times["sparse, float32"] = 1.0
    model = settled(Residual())
    x = torch.randn(batch, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x).model
    program = torch.export.export(condensed, (x,))
    called = {str(node.target) for node in program.graph.nodes}
    assert "sparseopt.conv2d_epilogue.default" in called
    assert "sparseopt.linear_epilogue.default" in called
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("size", [torch.export.Dim("batch"), torch.export.Dim.AUTO])
@pytest.mark.parametrize("batch", [4, 40])
def test_condensed_model_that_is_exported_with_a_dynamic_batch_takes_every_batch(
    times, batch, size
):
    times["sparse, float32"] = 1.0
    model = settled(Residual())
    x = torch.randn(batch, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x, scripted=False).model
    exported = torch.export.export(condensed, (x,), dynamic_shapes=({0: size},)).module()
    with torch.no_grad():
        for other in (1, 2, 31, 32, 40):
            x = torch.randn(other, 3, 8, 8)
            torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_condensed_model_is_compiled_once_for_small_and_large_batches(times):
    times["sparse, float32"] = 1.0
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    condensed = quickly(model, sparse_masks(model), torch.randn(20, 4, 8, 8), scripted=False).model
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(condensed, backend=counting, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for batch in (20, 31, 32, 40):
            x = torch.randn(batch, 4, 8, 8)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@needs_kernels
def test_model_that_cannot_be_traced_is_condensed(times):
    times["sparse, float32"] = 1.0
    model = settled(Untraceable())
    x = torch.randn(5, 4, 8, 8)
    condensed = quickly(model, sparse_masks(model), x)
    assert len(live_layers(condensed.model)) == 3
    assert "can't be traced" in condensed.report.failed["folding"]
    with torch.no_grad():
        found, expected = condensed.model(x)["logits"], model(x)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class ReadsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x)
        if x.sum() > -1e9:
            x = x / self.first.weight.norm()
        return self.second(x)


@needs_kernels
def test_layer_whose_weight_other_code_reads_stays_dense_and_other_layers_do_not(times):
    times["sparse, float32"] = 1.0
    model, x = ReadsWeight(), torch.randn(3, 16)
    condensed = quickly(model, sparse_masks(model), x)
    chosen = {layer.name: layer.chosen for layer in condensed.report.layers}
    assert chosen == {"first": "dense", "second": "live"}
    assert "has no attribute 'weight'" in condensed.report.failed["sparse, float32"]
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


@pytest.mark.parametrize("shape", [(3, 7, 16), (7, 16)])
def test_torchs_transformer_runs_and_its_layers_are_named(shape):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(encoder, nn.Linear(16, 5)).eval()
    x = torch.randn(shape)
    condensed = quickly(model, sparse_masks(model), x)
    names = {layer.name for layer in condensed.report.layers}
    assert "1" in names
    for inputs in (torch.randn(3, 7, 16), torch.randn(7, 16)):
        with torch.no_grad():
            torch.testing.assert_close(condensed.model(inputs), model(inputs))


@needs_kernels
def test_layer_with_dropped_weights_that_are_not_zero_stays_dense(times):
    times["sparse, float32"] = 1.0
    model = settled(Residual())
    masks = sparse_masks(model)
    with torch.no_grad():
        model.conv2.weight[~masks["conv2.weight"]] = 0.1
    x = torch.randn(2, 3, 8, 8)
    condensed = quickly(model, masks, x)
    (layer,) = (one for one in condensed.report.layers if one.name == "conv2")
    assert (layer.chosen, layer.obstacle) == (
        "dense",
        "it has dropped weights that are not zero",
    )
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_optimizer_has_the_masks_and_the_shapes_of_its_first_training_step():
    model = settled(Residual()).train()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, method="static", density=0.2)
    with pytest.raises(ValueError, match="example_inputs=None"):
        condense(model, optimizer)
    model(torch.randn(6, 3, 8, 8)).sum().backward()
    optimizer.step()
    condensed = condense(model, optimizer, rounds=1, compiled=False)
    assert {layer.shape.split("x")[0] for layer in condensed.report.layers} == {"6"}


def test_arguments_out_of_range_are_refused_by_name():
    model, x = nn.Linear(4, 4), torch.randn(1, 4)
    with pytest.raises(ValueError, match="rounds=0"):
        condense(model, "nonzero", example_inputs=x, rounds=0)
    with pytest.raises(ValueError, match="precision='half'"):
        condense(model, "nonzero", example_inputs=x, precision="half")
    with pytest.raises(TypeError, match="masks='zero'"):
        condense(model, "zero", example_inputs=x)


@pytest.mark.parametrize("form", ["tensor", "list", "mapping", "pair"])
def test_example_inputs_have_the_same_forms_as_in_other_functions(form):
    model, x = nn.Linear(8, 4), torch.randn(2, 8)
    inputs = {"tensor": x, "list": [x], "mapping": {"input": x}, "pair": ((x,), {})}[form]
    condensed = quickly(model, sparse_masks(model), inputs, scripted=False)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


@needs_kernels
def test_model_that_is_a_single_layer_is_replaced(times):
    times["sparse, float32"] = 1.0
    model, x = nn.Linear(16, 4).eval(), torch.randn(3, 16)
    condensed = quickly(model, sparse_masks(model), x)
    assert type(condensed.model) is LiveLinear
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


def test_spellings_of_0_1_0_warn_and_work():
    model = nn.Linear(16, 4)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.5, init={}
    )
    x = torch.randn(3, 16)
    with pytest.warns(DeprecationWarning, match="example_inputs"):
        condensed = condense(model, optimizer, x, compiled=False, rounds=1)
    assert isinstance(condensed, nn.Module)
    with (
        pytest.warns(DeprecationWarning, match="example_inputs"),
        pytest.raises(ValueError, match="needs inputs"),
    ):
        Condensation(model, optimizer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_number_format_that_the_kernels_do_not_support_is_condensed_with_torchs_layers(dtype):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
    masks = sparse_masks(model)
    x = torch.randn(4, 64, dtype=dtype)
    condensed = quickly(model, masks, x)
    assert all(name.endswith(str(dtype).removeprefix("torch.")) for name in condensed.report.times)
    with torch.no_grad():
        found = condensed.model(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, model(x), rtol=0.05, atol=0.05)


@pytest.mark.skipif(not assembly.has_bfloat16(torch.device("cpu")), reason="no bfloat16 here")
def test_model_that_takes_tokens_and_computes_in_bfloat16_returns_float32(times):
    times.update({"as it is, float32": 2.0, "folded, bfloat16": 1.0})
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 10)).eval()
    tokens = torch.randint(10, (2, 3))
    condensed = quickly(model, sparse_masks(model), tokens, precision="fastest")
    assert condensed.report.key == "folded, bfloat16"
    with torch.no_grad():
        found = condensed.model(tokens)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, model(tokens), rtol=0.05, atol=0.05)


@needs_kernels
def test_model_under_autocast_is_condensed_in_its_dtype(times):
    times["sparse, bfloat16"] = 1.0
    model = settled(Residual())
    masks, x = sparse_masks(model), torch.randn(4, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        condensed = quickly(model, masks, x)
        found, expected = condensed.model(x), model(x)
    assert condensed.report.chosen == "sparse"
    assert set(condensed.report.times) >= {"as it is, bfloat16", "sparse, bfloat16"}
    assert not any(name.endswith("float32") for name in condensed.report.times)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def chain(*layers):
    """Return candidates for convolutions, given the seconds of "dense", "live" and a conversion."""
    return [
        Candidates(None, 0.1, dict.fromkeys(seconds), (), seconds, conversion)
        for seconds, conversion in layers
    ]


def test_layer_is_live_if_its_gain_exceeds_the_time_of_its_conversions():
    fast, slow = {"dense": 5.0, "live": 1.0}, {"dense": 1.0, "live": 2.0}
    # Converting to channels-last and back costs more than a single slow layer.
    assert cheapest_chain(chain((fast, 1.0), (slow, 1.0), (fast, 1.0))) == ["live"] * 3
    # It costs less than three slow layers in a row.
    run = [(slow, 1.0)] * 3
    assert cheapest_chain(chain((fast, 1.0), *run, (fast, 1.0))) == [
        "live", "dense", "dense", "dense", "live",
    ]  # fmt: skip
    # A live layer whose gain is smaller than the conversion stays dense.
    assert cheapest_chain(chain(({"dense": 2.0}, 0.0), ({"dense": 2.0, "live": 1.5}, 1.0))) == [
        "dense", "dense",
    ]  # fmt: skip


@pytest.mark.slow
def test_torch_compile_is_one_of_the_dense_implementations():
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    report = quickly(model, sparse_masks(model), x, compiled=True).report
    known = {*report.times, *report.failed}
    assert "torch.compile, frozen, float32" in known


def test_model_that_does_not_run_in_bfloat16_is_condensed_in_float32(monkeypatch):
    monkeypatch.setattr(assembly, "has_bfloat16", lambda _: True)

    class InFloat32(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.table = torch.eye(16)

        def forward(self, x):
            return self.layer(x) @ self.table

    model, x = InFloat32(), torch.randn(2, 16)
    condensed = quickly(model, sparse_masks(model), x, scripted=False)
    assert condensed.report.precision == "float32"
    assert any(name.endswith("bfloat16") for name in condensed.report.failed)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x))


def test_branch_on_values_of_the_input_is_not_frozen(times):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.up(x) if x.mean() > 0 else self.down(x)

    model, x = Branching(), torch.rand(2, 16)
    times["frozen TorchScript, float32"] = 0.1
    condensed = quickly(model, sparse_masks(model), x)
    with torch.no_grad():
        for inputs in (x, -x):
            torch.testing.assert_close(condensed.model(inputs), model(inputs))


@pytest.mark.parametrize(
    "fastest", [pytest.param("sparse, float32", marks=needs_kernels), "folded, float32"]
)
@pytest.mark.parametrize("example", ["batch", "sample"])
@pytest.mark.parametrize("kind", ["linear", "convolution", "residual", "attention"])
def test_inputs_without_a_batch_give_outputs_without_one(times, fastest, example, kind):
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return (self.second(self.first(x).relu()) + self.first(x)).relu()

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    times[fastest] = 1.0
    model, shape = {
        "linear": (nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)), (32,)),
        "convolution": (
            nn.Sequential(
                nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten(-3)
            ),
            (8, 10, 10),
        ),
        "residual": (Adds(), (8, 6, 6)),
        "attention": (Attends().eval(), (7, 16)),
    }[kind]
    masks, x = sparse_masks(model, 0.4), torch.randn(3, *shape)
    condensed = quickly(model, masks, x if example == "batch" else x[0])
    assert condensed.report.chosen == fastest.partition(",")[0]
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x[0]), model(x[0]))
        torch.testing.assert_close(condensed.model(x), model(x))


def mixed():
    return nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 16), nn.Softmax(-1)
    )


@pytest.mark.parametrize("fastest", [SPARSE, "folded", "as it is", "frozen TorchScript"])
@pytest.mark.parametrize("net", [mixed, Residual])
def test_model_condensed_without_autocast_returns_under_autocast_what_the_original_does(
    times, fastest, net
):
    times[f"{fastest}, float32"] = 1.0
    model = settled(net())
    x = torch.randn(4, 32) if net is mixed else torch.randn(4, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x)
    assert condensed.report.chosen == fastest
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = model(x), condensed.model(x)
    assert found.dtype == expected.dtype
    assert (found.float() - exact).norm() <= 1.2 * (expected.float() - exact).norm() + 1e-6


@pytest.mark.skipif(not assembly.has_bfloat16(torch.device("cpu")), reason="no bfloat16 here")
@pytest.mark.parametrize("fastest", [SPARSE, "folded"])
def test_model_in_bfloat16_has_under_autocast_the_dtype_of_the_original(times, fastest):
    times[f"{fastest}, bfloat16"] = 1.0
    model = settled(Residual())
    x = torch.randn(4, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x, precision="fastest")
    assert condensed.report.precision == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert condensed.model(x).dtype == model(x).dtype == torch.bfloat16


@pytest.mark.skipif(not assembly.has_bfloat16(torch.device("cpu")), reason="no bfloat16 here")
@pytest.mark.parametrize("fastest", [SPARSE, "folded", "as it is", "frozen TorchScript"])
@pytest.mark.parametrize("net", [mixed, Residual])
def test_model_in_bfloat16_runs_under_autocast_with_float16(times, fastest, net):
    times[f"{fastest}, bfloat16"] = 1.0
    model = settled(net())
    x = torch.randn(4, 32) if net is mixed else torch.randn(4, 3, 8, 8)
    condensed = quickly(model, sparse_masks(model), x, precision="fastest")
    assert condensed.report.key == f"{fastest}, bfloat16"
    with torch.no_grad():
        exact, expected = model(x), condensed.model(x)
        with torch.autocast("cpu", torch.float16):
            found, dtype = condensed.model(x), model(x).dtype
    assert found.dtype == dtype
    assert (found.float() - exact).norm() <= 1.2 * (expected - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize("fastest", [SPARSE, "folded"])
@pytest.mark.parametrize("net", [mixed, Residual])
def test_model_condensed_under_autocast_computes_under_it_always_and_warns(times, fastest, net):
    times[f"{fastest}, bfloat16"] = 1.0
    model = settled(net())
    x = torch.randn(4, 32) if net is mixed else torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            condensed = quickly(model, sparse_masks(model), x)
            under = condensed.model(x)
            assert under.dtype == model(x).dtype
        assert (condensed.report.chosen, condensed.report.precision) == (fastest, "bfloat16")
        with pytest.warns(UserWarning, match="condensed under autocast.*torch.bfloat16"):
            without = condensed.model(x)
        assert without.dtype == model(x).dtype == torch.float32
        assert torch.equal(without, under.float())
        torch.testing.assert_close(without, model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("fastest", ["sparse, float32", "folded, float32", "as it is, float32"])
def test_model_condensed_in_inference_mode_works_with_autograd(times, fastest):
    times[fastest] = 1.0
    model = settled(Residual())
    masks = sparse_masks(model)
    with torch.inference_mode():
        x = torch.randn(4, 3, 8, 8)
        condensed = quickly(model, masks, x)
        torch.testing.assert_close(condensed.model(x), model(x), rtol=1e-4, atol=1e-5)
    tensors = [*condensed.model.parameters(), *condensed.model.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(condensed.model(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_model_made_in_inference_mode_is_condensed(times):
    times["sparse, float32"] = 1.0
    with torch.inference_mode():
        model = settled(Residual())
        masks = sparse_masks(model)
    x = torch.randn(4, 3, 8, 8)
    condensed = quickly(model, masks, x)
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_float64_is_folded_in_float64(times, affine):
    times["folded, float64"] = 1.0
    net = Residual() if affine else nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1))
    model = settled(net).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    condensed = quickly(model, sparse_masks(model), x)
    assert condensed.report.chosen == "folded"
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x), model(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("fastest", [SPARSE, "folded"])
@pytest.mark.parametrize("batch", [1, 20])
def test_nan_stays_nan_through_activations(times, fastest, batch):
    times[f"{fastest}, float32"] = 1.0
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU6(),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8), nn.ReLU(),
    ).eval()  # fmt: skip
    masks = sparse_masks(model, 0.9)
    x = torch.randn(batch, 8, 4, 4)
    condensed = quickly(model, masks, x)
    assert condensed.report.chosen == fastest
    x[0] = float("nan")
    with torch.no_grad():
        found = condensed.model(x)
        torch.testing.assert_close(found, model(x), equal_nan=True)
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()


def test_model_on_the_meta_device_raises_an_error_that_names_the_argument():
    masks = {"0.weight": torch.rand(16, 16) < 0.5}
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(ValueError, match=r"model has no values.*'0.weight'.*to_empty"):
        quickly(model, masks, torch.randn(2, 16))
    with pytest.raises(ValueError, match=r"example_inputs .*\(2, 16\) on the meta device"):
        quickly(nn.Sequential(nn.Linear(16, 16)), masks, torch.randn(2, 16, device="meta"))
