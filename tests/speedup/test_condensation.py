"""Linear layers that multiply live weights only: the same numbers, and where they are used."""

import copy

import pytest
import torch
from torch import nn

from sparseopt import (
    Compaction,
    Condensation,
    CondensedLinear,
    CSRLinear,
    LayerTimes,
    SparseOptimizer,
    condense,
)
from sparseopt.speedup.linear_implementations import dense_implementations, median_seconds
from tests.speedup.masking import optimizer_without, static


def constant_fan_in(rows, columns, fan_in, ablated=()):
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        if row not in ablated:
            mask[row, torch.randperm(columns)[:fan_in]] = True
    return mask


def masked_linear(mask, bias=True):
    layer = nn.Linear(*reversed(mask.shape), bias=bias)
    with torch.no_grad():
        layer.weight[~mask] = 0
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24)])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_the_result_is_that_of_the_dense_layer(kind, shape, bias):
    mask = constant_fan_in(16, 24, 4, ablated=(0, 9))
    dense = masked_linear(mask, bias)
    x = torch.randn(shape)
    torch.testing.assert_close(kind(dense.weight, mask, dense.bias)(x), dense(x))


def test_csr_takes_any_mask():
    mask = torch.rand(16, 24) < 0.2
    mask[3] = False
    dense = masked_linear(mask)
    x = torch.randn(5, 24)
    torch.testing.assert_close(CSRLinear(dense.weight, mask, dense.bias)(x), dense(x))


def test_a_condensed_layer_refuses_a_fan_in_that_is_not_constant():
    mask = constant_fan_in(4, 6, 2)
    mask[0] = True
    with pytest.raises(ValueError, match="constant fan-in"):
        CondensedLinear(torch.randn(4, 6), mask, None)


def test_a_condensed_layer_stores_values_and_indices_of_live_weights_only():
    mask = constant_fan_in(16, 24, 4, ablated=(0,))
    layer = CondensedLinear(masked_linear(mask).weight, mask, None)
    assert layer.values.shape == layer.indices.shape == (15, 4)


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    mask = constant_fan_in(16, 24, 4)
    layers = [kind(masked_linear(mask).weight, mask, None) for kind in (CondensedLinear, CSRLinear)]
    model = nn.Sequential(layers[0], nn.Linear(16, 24), layers[1])
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(3, 24)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(x), model(x))


def test_a_sparse_way_is_chosen_only_if_every_dense_way_is_slower():
    dense = {"F.linear float32": 4.0, "F.linear bfloat16": 2.0}
    slower = LayerTimes("fc", 0.1, 1, dense, {"CSR": 3.0})
    assert (slower.chosen, slower.fastest_dense) == ("dense", "F.linear bfloat16")
    faster = LayerTimes("fc", 0.1, 1, dense, {"CSR": 3.0, "condensed": 1.0})
    assert (faster.chosen, faster.speed_up) == ("condensed", 2.0)
    assert "2.00 x the speed of the fastest dense way, F.linear bfloat16" in str(faster)


def test_without_a_sparse_way_a_layer_is_dense_and_its_report_says_so():
    dense = {"F.linear bfloat16": 4e-6, "oneDNN packed bfloat16": 2e-6}
    times = LayerTimes("fc", 0.1, 1, dense, {}, "there is none")
    assert (times.chosen, times.fastest_sparse, times.speed_up) == ("dense", None, 0.0)
    assert str(times) == (
        "fc: density 0.1, 1 rows: dense, since there is none. "
        "The fastest dense way is oneDNN packed bfloat16 (2.0 us)"
    )


def mlp():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.Flatten())


def test_whatever_is_chosen_the_model_computes_the_same_and_the_given_one_is_left_alone():
    model = mlp()
    before = copy.deepcopy(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(
        inner, model, method="static", mask={"0": constant_fan_in(48, 64, 4)}, init={"2": 0.1}
    )
    x = torch.randn(3, 64)
    condensation = Condensation(model, optimizer, x, rounds=1)
    torch.testing.assert_close(condensation.model(x), model(x))
    assert repr(model) == repr(before)
    assert model.training
    ways = {times.name: set(times.sparse) for times in condensation.report}
    assert ways == {"0": {"CSR", "condensed"}, "2": {"CSR"}}
    assert all("F.linear bfloat16" in times.dense for times in condensation.report)
    assert [times.rows for times in condensation.report] == [3, 3]


@pytest.fixture
def csr_is_fastest(monkeypatch):
    """The times are made up: what a machine would measure cannot be relied on."""

    def made_up(calls, rounds, device):
        return {name: 1.0 if name == "CSR" else 2.0 for name in calls}

    monkeypatch.setattr("sparseopt.speedup.condensation.median_seconds", made_up)


def sparse(model):
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return SparseOptimizer(inner, model, method="static", density=0.1, init={})


def chosen(condensation):
    return {times.name: times.chosen for times in condensation.report}


@pytest.mark.usefixtures("csr_is_fastest")
def test_a_layer_is_replaced_where_its_times_say_so():
    model = mlp()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", density=0.1, init={"2": 1.0})
    x = torch.randn(3, 64)
    condensed = condense(model, optimizer, x)
    assert [type(layer) for layer in condensed[:3]] == [CSRLinear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(condensed(x), model(x))


def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Linear(16, 5))


@pytest.mark.usefixtures("csr_is_fastest")
@pytest.mark.parametrize("shape", [(3, 7, 16), (7, 16)])
def test_the_feed_forward_layers_of_torchs_transformer_stay_dense_and_it_runs(shape):
    """Its fast path, for inputs of three dimensions, reads their weights."""
    model = transformer()
    condensation = Condensation(model, sparse(model), torch.randn(shape))
    feed_forward = {f"0.layers.{i}.linear{k}": "dense" for i in (0, 1) for k in (1, 2)}
    assert chosen(condensation) == {**feed_forward, "1": "CSR"}
    first, *_, last = condensation.report
    assert first.obstacle == "TransformerEncoderLayer reads its weight"
    assert "dense, since TransformerEncoderLayer reads its weight" in str(first)
    assert last.obstacle is None
    for inputs in (torch.randn(3, 7, 16), torch.randn(7, 16)):
        for mode in (torch.no_grad(), torch.enable_grad()):
            with mode:
                torch.testing.assert_close(condensation.model(inputs), model.eval()(inputs))


@pytest.mark.usefixtures("csr_is_fastest")
def test_layers_beside_attention_become_sparse_and_its_own_stay():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.fc = nn.Linear(16, 16)

        def forward(self, x):
            return self.fc(x + self.attention(x, x, x)[0])

    model, x = Block(), torch.randn(3, 7, 16)
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"fc": "CSR"}
    with torch.no_grad():
        torch.testing.assert_close(condensation.model(x), model.eval()(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.first(x))


class ReadsWeight(Two):
    def forward(self, x):
        return super().forward(x) / self.first.weight.norm()


@pytest.mark.usefixtures("csr_is_fastest")
def test_a_layer_without_which_the_model_does_not_run_stays_dense_and_the_report_says_why():
    model, x = ReadsWeight(), torch.randn(3, 16)
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"first": "dense", "second": "CSR"}
    obstacle = condensation.report[0].obstacle
    assert obstacle == (
        "with CSR the model does not run (AttributeError: 'CSRLinear' object has no attribute "
        "'weight')"
    )
    torch.testing.assert_close(condensation.model(x), model(x))


@pytest.mark.usefixtures("csr_is_fastest")
def test_a_layer_with_a_hook_that_changes_its_result_stays_dense():
    model, x = Two(), torch.randn(3, 16)
    model.second.register_forward_hook(lambda _layer, _inputs, result: result + 1)
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"first": "CSR", "second": "dense"}
    assert "with CSR the model's output is" in condensation.report[1].obstacle
    torch.testing.assert_close(condensation.model(x), model(x))


class Odd(Two):
    """Writes to its input, and draws random numbers, and masks its scores."""

    def forward(self, x):
        scores = super().forward(nn.functional.dropout(x.mul_(2), training=True))
        return scores.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)


@pytest.mark.usefixtures("csr_is_fastest")
def test_random_numbers_infinite_outputs_and_inputs_that_are_written_to_are_no_obstacle():
    model, x = Odd(), torch.randn(3, 16)
    given = x.clone()
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"first": "CSR", "second": "CSR"}
    assert torch.equal(x, given)
    torch.manual_seed(1)
    expected = model(x.clone())
    torch.manual_seed(1)
    torch.testing.assert_close(condensation.model(x.clone()), expected)


@pytest.mark.usefixtures("csr_is_fastest")
def test_a_model_that_is_one_linear_layer_is_replaced_as_a_whole():
    model, x = nn.Linear(16, 4), torch.randn(3, 16)
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"": "CSR"}
    assert type(condensation.model) is CSRLinear
    torch.testing.assert_close(condensation.model(x), model(x))


def test_without_inputs_there_is_nothing_to_time_on():
    model = mlp()
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="needs inputs"):
        condense(model, optimizer)


def test_a_compacted_model_can_be_condensed_with_the_masks_that_are_left():
    model = mlp()
    optimizer = optimizer_without(model, {"0": [1, 2, 3]}, {"2": [1, 2, 3, 7]})
    x = torch.randn(3, 64)
    compaction = Compaction(model, optimizer, x)
    again = SparseOptimizer(
        torch.optim.SGD(compaction.model.parameters(), lr=0.1),
        compaction.model,
        method="static",
        mask=compaction.masks,
        init=dict.fromkeys(compaction.masks, 1.0),
    )
    assert {name: tuple(mask.shape) for name, mask in again.masks.items()} == {
        "0.weight": (44, 64),
        "2.weight": (32, 44),
    }
    condensed = condense(compaction.model, again, x, rounds=1)
    torch.testing.assert_close(condensed(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_is_condensed(dtype):
    """Ways that a precision does not have are left out, and the result is in that precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
    whole = torch.ones(8, 64, dtype=torch.bool)
    optimizer = static(model, {"0.weight": constant_fan_in(64, 64, 6), "2.weight": whole})
    x = torch.randn(4, 64, dtype=dtype)
    condensation = Condensation(model, optimizer, x, rounds=1)
    (times,) = condensation.report
    assert "condensed" in times.sparse
    assert all("float32" not in way for way in times.dense)
    found = condensation.model(x)
    assert found.dtype == dtype
    tolerance = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found, model(x), **tolerance)


def without_sparse_products(monkeypatch):
    """As in builds without MKL, on every machine."""

    def forward(layer, x):
        raise RuntimeError("Calling addmm on a sparse CPU tensor requires MKL")

    monkeypatch.setattr(CSRLinear, "forward", forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_no_sparse_product_is_to_be_had_layers_stay_as_they_are(dtype, monkeypatch):
    without_sparse_products(monkeypatch)
    model = mlp().to(dtype)
    x = torch.randn(3, 64, dtype=dtype)
    condensation = Condensation(model, sparse(model), x, rounds=1)
    assert [times.sparse for times in condensation.report] == [{}, {}]
    name = str(dtype).removeprefix("torch.")
    obstacle = f"there is no sparse product in {name} on this device"
    assert [times.obstacle for times in condensation.report] == [obstacle] * 2
    assert f"dense, since {obstacle}. The fastest" in str(condensation.report[0])
    assert torch.equal(condensation.model(x), model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_any_mask_is_condensed_with_what_this_machine_has(dtype):
    model = mlp().to(dtype)
    x = torch.randn(3, 64, dtype=dtype)
    condensation = Condensation(model, sparse(model), x, rounds=1)
    assert [times.name for times in condensation.report] == ["0", "2"]
    found = condensation.model(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, model(x), rtol=0.05, atol=0.05)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_under_autocast_the_result_is_that_of_the_dense_layer(kind, given, half):
    """Of a double, too, which autocast leaves as it is; the others it makes ``half``."""
    mask = constant_fan_in(16, 24, 4, ablated=(0, 9))
    dense = masked_linear(mask)
    if given is torch.float64:
        dense = dense.double()
    layer, x = kind(dense.weight, mask, dense.bias), torch.randn(5, 24, dtype=given)
    with torch.no_grad(), torch.autocast("cpu", half):
        expected, found = dense(x), layer(x)
    assert expected.dtype == (torch.float64 if given is torch.float64 else half)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("csr_is_fastest")
@pytest.mark.parametrize("half", HALVES)
def test_a_model_is_condensed_as_it_runs_under_autocast(half):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    masks = {"0.weight": constant_fan_in(64, 64, 6), "2.weight": constant_fan_in(8, 64, 6)}
    optimizer, x = static(model, masks), torch.randn(4, 64)
    with torch.no_grad(), torch.autocast("cpu", half):
        condensation = Condensation(model, optimizer, x)
        expected, found = model(x), condensation.model(x)
    assert chosen(condensation) == {"0": "CSR", "2": "CSR"}
    name = str(half).removeprefix("torch.")
    for times in condensation.report:
        assert set(times.sparse) == {"CSR", "condensed"}
        assert {way for way in times.dense if way.startswith("F.linear")} == {
            f"F.linear {name}",
            "F.linear bfloat16",
        }
    assert found.dtype == half
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


class CallsByName(Two):
    def forward(self, x):
        return self.second(input=self.first(input=x))


@pytest.mark.usefixtures("csr_is_fastest")
def test_layers_that_are_called_by_keyword_are_replaced():
    model, x = CallsByName(), torch.randn(3, 16)
    condensation = Condensation(model, sparse(model), x)
    assert chosen(condensation) == {"first": "CSR", "second": "CSR"}
    assert [times.rows for times in condensation.report] == [3, 3]
    torch.testing.assert_close(condensation.model(x), model(x))


class Machine:
    """A clock, and an accelerator that works through its queue only while it is waited for."""

    def __init__(self, monkeypatch):
        self.time = self.queued = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.time)
        monkeypatch.setattr("torch.accelerator.synchronize", self.finish)

    def finish(self, device):
        self.time, self.queued = self.time + self.queued, 0.0

    def kernel(self, seconds):
        def launch():
            self.time += 1e-6
            self.queued += seconds

        return launch


def test_on_an_accelerator_its_own_time_is_measured_and_not_that_of_launching(monkeypatch):
    machine = Machine(monkeypatch)
    calls = {"short": machine.kernel(3e-5), "long": machine.kernel(7e-3)}
    seconds = median_seconds(calls, 3, torch.device("cuda", 0))
    assert seconds == pytest.approx({"short": 3.1e-5, "long": 7.001e-3})


def test_dense_ways_compute_the_same():
    """What sparse layers are measured against is the layer itself, packed or not."""
    layer, x = nn.Linear(48, 32), torch.randn(5, 48)
    expected = layer(x)
    for name, call in dense_implementations(layer, x).items():
        rounding = 0.05 if "bfloat16" in name else 1e-5
        torch.testing.assert_close(call().float(), expected, rtol=rounding, atol=rounding)
