"""Condensed models are called as the model is: what they read, write and return."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseopt.speedup import kernels
from sparseopt.speedup.inference import assembly
from sparseopt.utils.nested import leaves
from tests.speedup.inference.nets import live_layers, quickly, sparse_masks

pytestmark = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
CAUSAL = torch.full((6, 6), float("-inf")).triu(1)


@pytest.fixture(autouse=True)
def sparse_is_fastest(times):
    times["sparse, float32"] = 1.0


class Cell(nn.Module):
    """A recurrent cell that writes its state into the tensor that it was given."""

    def __init__(self):
        super().__init__()
        self.inner, self.again, self.out = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, state):
        h = torch.tanh(self.inner(x) + self.again(state))
        state.copy_(h)
        return self.out(h)


def test_state_that_forward_writes_into_its_input_is_written(times):
    model, x, state = Cell(), torch.randn(4, 16), torch.randn(4, 16)
    condensed = quickly(model, sparse_masks(model), (x, state))
    assert len(live_layers(condensed.model)) == 3
    assert "writes to its inputs" in condensed.report.failed["folding"]
    expected = state.clone()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(condensed.model(x, state), model(x, expected))
            torch.testing.assert_close(state, expected)


def test_number_format_that_inputs_are_converted_to_is_not_tried_where_they_are_written(
    monkeypatch,
):
    monkeypatch.setattr(assembly, "has_bfloat16", lambda _: True)
    model, x, state = Cell(), torch.randn(4, 16), torch.randn(4, 16)
    times = quickly(model, sparse_masks(model), (x, state)).report.times
    assert {"as it is, float32", "sparse, float32"} <= times.keys()
    assert not any(name.endswith("bfloat16") for name in times)


class Collects(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, features):
        features.append(self.first(x))
        return self.last(features[-1].relu())


def test_list_that_forward_appends_to_grows_as_before():
    model, x, given = Collects(), torch.randn(4, 16), []
    condensed = quickly(model, sparse_masks(model), (x, given))
    assert given == []
    expected, found = [], []
    with torch.no_grad():
        model(x, expected)
        condensed.model(x, found)
    assert len(found) == 1
    torch.testing.assert_close(found[0], expected[0])


class Attends(nn.Module):
    """Attention whose mask is causal unless another one is given."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x, mask=None):
        if mask is None:
            mask = CAUSAL
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class Chooses(nn.Module):
    """Which parameter it uses depends on an argument, which it does not use itself."""

    def __init__(self):
        super().__init__()
        self.layer, self.one, self.other = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, mask=None):
        bias = self.one.bias if mask is None else self.other.bias
        return self.layer(x) + bias


class ChoosesByBoth(nn.Module):
    """It does something else if two arguments are left out together."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask=None, other=None):
        if mask is None and other is None:
            return self.layer(x)
        return self.layer(x).relu()


class Required(nn.Module):
    """``None`` is given for an argument that has no default."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask):
        return self.layer(x) if mask is None else self.layer(x).relu()


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [nn.Module.eval, copy.deepcopy, pickled])
@pytest.mark.parametrize("kind", [Attends, Chooses, ChoosesByBoth, Required])
@pytest.mark.parametrize("given", [False, True])
def test_argument_that_code_depends_on_is_as_in_the_example(given, kind, copied):
    model, x = kind().eval(), torch.randn(2, 6, 16)
    rest = [torch.randn(6, 6)] * (2 if kind is ChoosesByBoth else 1)
    masks = sparse_masks(model)
    one, other = [x, *rest], [x, *[None] * len(rest)]
    one, other = (one, other) if given else (other, one)
    condensed = copied(quickly(model, masks, tuple(one), scripted=False).model)
    assert live_layers(condensed)
    with torch.no_grad():
        torch.testing.assert_close(condensed(*one), model(*one))
        with pytest.raises(ValueError, match="mask=.* differs from the example inputs"):
            condensed(*other)


class PassesOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x, mask=None, *, scale=None):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))


@pytest.mark.parametrize("given", [False, True])
def test_optional_argument_that_code_only_passes_on_may_be_left_out_or_given(given):
    model, x, mask = PassesOn().eval(), torch.randn(2, 6, 16), torch.randn(6, 6)
    condensed = quickly(model, sparse_masks(model), (x, mask) if given else x)
    assert len(live_layers(condensed.model)) == 2
    with torch.no_grad():
        for arguments in ((x,), (x, mask)):
            torch.testing.assert_close(condensed.model(*arguments), model(*arguments))
            found = condensed.model(*arguments, scale=0.5)
            torch.testing.assert_close(found, model(*arguments, scale=0.5))


@dataclass(frozen=True)
class Output:
    logits: Tensor
    steps: int = 1


class Graph(nn.Module):
    """Its second input is a sparse matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, adjacency):
        return self.last(torch.sparse.mm(adjacency, self.first(x)).relu())


def test_sparse_inputs_are_taken():
    model, x = Graph(), torch.randn(5, 16)
    adjacency = (torch.rand(5, 5) < 0.4).float().to_sparse()
    condensed = quickly(model, sparse_masks(model), (x, adjacency))
    assert len(live_layers(condensed.model)) == 2
    with torch.no_grad():
        torch.testing.assert_close(condensed.model(x, adjacency), model(x, adjacency))


class Wrapped(nn.Module):
    """A model whose outputs are made by a function."""

    def __init__(self, model, make):
        super().__init__()
        self.model, self.make = model, make

    def forward(self, x):
        return self.make(self.model(x))


def test_outputs_in_a_dataclass_are_checked_and_keep_their_number_format(times):
    model, x = Wrapped(Attends(), Output).eval(), torch.randn(2, 6, 16)
    masks = sparse_masks(model)
    expected = model(x).logits
    found = quickly(model, masks, x).model(x)
    assert isinstance(found, Output)
    torch.testing.assert_close(found.logits, expected)
    times["as it is, bfloat16"] = times["folded, bfloat16"] = 0.5
    found = quickly(model, masks, x, precision="fastest").model(x)
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.logits, expected, rtol=0.05, atol=0.05)


def test_integers_in_the_outputs_are_checked():
    model, x = Wrapped(nn.Linear(16, 16), lambda y: y.argmax(-1)), torch.randn(40, 16)
    masks = sparse_masks(model)
    condensed = quickly(model, masks, x)
    assert len(live_layers(condensed.model)) == 1
    assert torch.equal(condensed.model(x), model(x))


def test_model_without_numbers_in_its_outputs_stays_as_it_is():
    model, x = Wrapped(nn.Linear(16, 16), lambda y: [str(y.shape)]), torch.randn(4, 16)
    condensed = quickly(model, sparse_masks(model), x)
    assert live_layers(condensed.model) == []
    assert "no numbers to compare" in condensed.report.failed["folded, float32"]


class Regroups(nn.Module):
    """It views maps in another shape between convolutions, and returns a map."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        n, _, height, width = x.shape
        x = x.view(2 * n, 4, height, width)
        return self.last(x)


class RegroupsByValue(Regroups):
    """It can't be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("kind", [Regroups, RegroupsByValue])
@pytest.mark.parametrize("batch", [1, 3])
def test_view_between_convolutions_works_for_every_batch_size(kind, batch):
    model = kind().eval()
    condensed = quickly(model, sparse_masks(model), torch.randn(batch, 4, 5, 6), scripted=False)
    assert len(live_layers(condensed.model)) == (2 if kind is Regroups else 1)
    with torch.no_grad():
        for size in (1, 2, 40):
            x = torch.randn(size, 4, 5, 6)
            torch.testing.assert_close(condensed.model(x), model(x), rtol=1e-4, atol=1e-5)


class Maps(nn.Sequential):
    """It returns maps, and can't be traced if it has to decide by a value."""

    def __init__(self, by_value):
        super().__init__(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
        self.by_value = by_value

    def forward(self, x):
        if self.by_value and x.sum() < -1e9:
            return [x]
        return [super().forward(x)]


def test_maps_that_a_pickled_model_returns_can_be_viewed():
    model, x = Maps(False).eval(), torch.randn(3, 4, 6, 6)
    condensed = pickled(quickly(model, sparse_masks(model), x, scripted=False).model)
    with torch.no_grad():
        (found,), (expected,) = condensed(x), model(x)
    torch.testing.assert_close(found.view(-1), expected.view(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("implementation", ["sparse", "folded", "channels-last"])
def test_maps_that_a_model_returns_can_be_viewed(times, implementation, by_value):
    times[f"{implementation}, float32"] = 0.5
    model, x = Maps(by_value).eval(), torch.randn(3, 4, 6, 6)
    condensed = quickly(model, sparse_masks(model), x, scripted=False)
    assert condensed.report.chosen == implementation
    with torch.no_grad():
        (found,), (expected,) = condensed.model(x), model(x)
    torch.testing.assert_close(found.view(-1), expected.view(-1), rtol=1e-4, atol=1e-5)


OUTPUTS = {
    "flattened": lambda y: y.flatten(2),
    "rows": lambda y: y.flatten(1),
    "one channel": lambda y: y[:, :1] * 1,
    "without a channel": lambda y: (y[:, :1] * 1).squeeze(1),
    "channels": lambda y: {"channels": y.unbind(1), "all": y},
    "three channels": lambda y: y[:, :3],
    "boxes": lambda y: y.reshape(y.shape[0], 2, 3, *y.shape[2:]).unbind(1),
    "five dimensions": lambda y: [y.unsqueeze(1), y.reshape(y.shape[0], 2, 3, *y.shape[2:])],
    "turned": lambda y: y.flatten(2).transpose(1, 2),
    "broadcast": lambda y: y.mean((2, 3), keepdim=True).expand_as(y),
}


class Returns(nn.Module):
    """It returns a map in another form, and can't be traced if it has to decide by a value."""

    def __init__(self, form, by_value):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        )
        self.form = form
        self.by_value = by_value

    def forward(self, x):
        if self.by_value and x.sum() < -1e9:
            return x
        return OUTPUTS[self.form](self.convs(x))


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("implementation", ["sparse", "folded", "channels-last"])
def test_outputs_can_be_viewed_as_the_outputs_of_the_model(times, implementation, form, by_value):
    times[f"{implementation}, float32"] = 0.5
    model = Returns(form, by_value).eval()
    given = torch.randn(3, 4, 6, 7)
    condensed = quickly(model, sparse_masks(model), given, scripted=False)
    assert condensed.report.chosen == implementation
    for batch in (1, 3, 40):
        x = torch.randn(batch, 4, 6, 7)
        with torch.no_grad():
            found, expected = leaves(condensed.model(x)), leaves(model(x))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one, before in zip(found, expected, strict=True):
            assert one.is_contiguous() or not before.is_contiguous()
            if form not in {"turned", "broadcast"}:
                one.view(batch, -1)


@pytest.mark.parametrize("form", ["flattened", "three channels", "boxes"])
def test_exported_and_scripted_outputs_can_be_viewed(times, form):
    model, x = Returns(form, False).eval(), torch.randn(3, 4, 6, 7)
    sparse = quickly(model, sparse_masks(model), x, scripted=False).model
    batch = torch.export.Dim("batch")
    exported = torch.export.export(sparse, (x,), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(sparse, backend="eager", dynamic=True, fullgraph=True)
    times["frozen TorchScript, float32"] = 0.5
    scripted = quickly(model, sparse_masks(model), x)
    assert scripted.report.chosen == "frozen TorchScript"
    with torch.no_grad():
        for copied in (exported, compiled, scripted.model):
            for x in (torch.randn(3, 4, 6, 7), torch.randn(40, 4, 6, 7)):
                for found, expected in zip(leaves(copied(x)), leaves(model(x)), strict=True):
                    rows = len(x), -1
                    torch.testing.assert_close(
                        found.view(rows), expected.view(rows), rtol=1e-4, atol=1e-5
                    )


class ReturnsFewer(nn.Module):
    """How many maps it returns depends on their size."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return [y.flatten(2)] if x.shape[2] > 6 else [y.flatten(2), y]


def test_outputs_in_another_number_than_in_the_example_can_be_viewed(times):
    model = ReturnsFewer().eval()
    condensed = quickly(model, sparse_masks(model), torch.randn(3, 4, 6, 6), scripted=False).model
    x = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        (found,), (expected,) = condensed(x), model(x)
    torch.testing.assert_close(found.view(-1), expected.view(-1), rtol=1e-4, atol=1e-5)


class ReturnsChannelsLast(Maps):
    def forward(self, x):
        (y,) = super().forward(x)
        return [y.contiguous(memory_format=torch.channels_last), y]


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("implementation", ["sparse", "folded", "channels-last"])
def test_map_that_a_model_returns_in_channels_last_format_stays_so(times, implementation, by_value):
    times[f"{implementation}, float32"] = 0.5
    model, x = ReturnsChannelsLast(by_value).eval(), torch.randn(3, 4, 6, 6)
    condensed = quickly(model, sparse_masks(model), x, scripted=False)
    assert condensed.report.chosen == implementation
    with torch.no_grad():
        (last, other), expected = condensed.model(x), model(x)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert other.is_contiguous()
    torch.testing.assert_close([last, other], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*not yet implemented the batching rule:UserWarning")
def test_samples_are_vectorised_over():
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), torch.randn(4, 16)
    condensed = quickly(model, sparse_masks(model), x).model
    assert len(live_layers(condensed)) == 2
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(condensed)(x), model(x))


class Kinds(nn.Module):
    """It does something else if ``chosen`` says so."""

    def __init__(self, chosen):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.chosen = chosen

    def forward(self, x, setting=None):
        x = self.first(x).relu()
        return self.last(x) if self.chosen(setting) else x


ACTIVE = {0.25, 7, "tanh"}


@dataclass
class Setting:
    mask: Tensor | None = None


@pytest.mark.parametrize(
    ("chosen", "example", "other"),
    [
        (lambda flag: flag is True, False, True),
        (lambda flag: flag is True, True, False),
        (lambda flag: flag is True, None, True),
        (lambda kind: kind in ACTIVE, "gelu", "tanh"),
        (lambda kind: kind in ACTIVE, 0.5, 0.25),
        (lambda kind: kind in ACTIVE, 3, 7),
        (lambda kind: kind in ACTIVE, None, 7),
        (lambda layer: f"layer{layer}" == "layer7", 3, 7),
        (lambda layer: f"layer{layer}" == "layer7", None, 7),
        (lambda scale: isinstance(scale, float), 2, 2.0),
        (lambda scale: isinstance(scale, float), None, 2.0),
        (lambda mask: isinstance(mask, Tensor), None, torch.ones(1)),
        (lambda batch: batch.get("mask") is not None, {"mask": torch.ones(1)}, {}),
        (lambda batch: batch.get("mask") is not None, {}, {"mask": torch.ones(1)}),
        (lambda pair: pair[1] is not None, (torch.ones(1), torch.ones(1)), (torch.ones(1), None)),
        (lambda pair: isinstance(pair, list), (torch.ones(1),), [torch.ones(1)]),
        (lambda one: one.mask is not None, Setting(torch.ones(1)), Setting()),
        (lambda one: isinstance(one, Setting), None, Setting()),
    ],
)
def test_call_that_differs_from_the_example_is_computed_rightly_or_raises_an_error(
    chosen, example, other
):
    model, x = Kinds(chosen).eval(), torch.randn(4, 16)
    condensed = quickly(model, sparse_masks(model), (x, example), scripted=False).model
    assert live_layers(condensed)
    with torch.no_grad():
        assert not torch.equal(model(x, example), model(x, other))
        torch.testing.assert_close(condensed(x, example), model(x, example))
        if isinstance(condensed, fx.GraphModule):
            with pytest.raises(ValueError, match="setting=.* differs from the example inputs"):
                condensed(x, other)
        else:
            torch.testing.assert_close(condensed(x, other), model(x, other))


class Scales(nn.Module):
    """It only computes with a number, and branches on a flag."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, batch, step, flag=False):
        x = self.first(x + batch["bias"]) * (1 - step / 1000)
        return self.last(x.relu() if flag else x)


def test_number_that_code_only_computes_with_may_have_any_value():
    model, x, bias = Scales().eval(), torch.randn(4, 16), torch.randn(16)
    condensed = quickly(model, sparse_masks(model), (x, {"bias": bias}, 5)).model
    assert len(live_layers(condensed)) == 2
    with torch.no_grad():
        for step in (5, 800, 12.5):
            expected = model(x, {"bias": -bias}, step)
            torch.testing.assert_close(condensed(x, {"bias": -bias}, step), expected)
        with pytest.raises(ValueError, match="batch=dict.* differs from the example inputs"):
            condensed(x, {"bias": bias, "other": bias}, 5)
        with pytest.raises(ValueError, match="flag=True differs .* had flag=False"):
            condensed(x, {"bias": bias}, 5, True)


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.draw = draw

    def forward(self, x):
        return self.last(self.first(x).relu() + self.draw())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "draw", [lambda: torch.randn(16), lambda: 3.0 if torch.rand(()) < 0.5 else 0.0]
)
def test_noise_is_drawn_in_each_call_whatever_the_seed(seed, draw):
    model, x = Noisy(draw).eval(), torch.randn(4, 16)
    masks = sparse_masks(model)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    condensed = quickly(model, masks, x, scripted=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert "random noise" in condensed.report.failed["folding"]
    assert len(live_layers(condensed.model)) == 2
    with torch.no_grad():
        first = condensed.model(x)
        assert any(not torch.equal(condensed.model(x), first) for _ in range(20))
