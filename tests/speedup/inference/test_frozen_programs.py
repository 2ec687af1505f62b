"""Frozen programs compute what the model computes for all inputs, and refuse other weights."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sparseopt import CheckpointError, load_sparse, save_sparse
from sparseopt.speedup.inference import assembly
from sparseopt.speedup.inference.dense_implementations import (
    Frozen,
    Prepared,
    UnderAutocast,
    dense_implementations,
)
from tests.speedup.inference.nets import quickly


class Images(nn.Module):
    """A model that scales images of bytes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        if x.dtype == torch.uint8:
            x = x.float() / 255
        return self.layer(x)


class Masking(Images):
    """A model that takes a mask of bools, or of numbers to add."""

    def forward(self, x, mask):
        x = x.masked_fill(mask, -1) if mask.dtype == torch.bool else x + mask
        return self.layer(x)


class Containers(Images):
    """A model of two inputs in a list, a tuple or a dictionary, which it treats differently."""

    def forward(self, given):
        if isinstance(given, dict):
            return self.layer(given["x"] - given["y"] if "y" in given else given["x"])
        x, y = given
        return self.layer(x + y if isinstance(given, tuple) else x * y)


@pytest.fixture
def frozen(times):
    """Return a function that condenses a model to a frozen program."""
    times["frozen TorchScript, float32"] = 1.0

    def made(model, *args):
        condensed = quickly(model, "nonzero", args)
        assert condensed.report.chosen == "frozen TorchScript"
        assert isinstance(condensed.model, Frozen)
        return condensed.model

    return made


X, Y = torch.rand(2, 8), torch.rand(2, 8)
BYTES = torch.randint(256, (2, 8), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("copied", [nn.Module.eval, copy.deepcopy])
@pytest.mark.parametrize(
    ("net", "example", "other"),
    [
        (Images, (BYTES,), (X,)),
        (Images, (X,), (BYTES,)),
        (Masking, (X, Y > 0.5), (X, Y)),
        (Masking, (X, Y), (X, Y > 0.5)),
        (Containers, ((X, Y),), ([X, Y],)),
        (Containers, ([X, Y],), ((X, Y),)),
        (Containers, ({"x": X, "y": Y},), ({"y": X, "x": Y},)),
        (Containers, ({"x": X, "z": Y},), ({"x": X, "y": Y},)),
        (Containers, ({"x": X},), ({"x": X, "y": Y},)),
    ],
)
def test_inputs_of_another_structure_or_number_format_than_the_example(
    frozen, net, example, other, copied
):
    model = net().eval()
    program = copied(frozen(model, *example))
    torch.testing.assert_close(program(*example), model(*example))
    torch.testing.assert_close(program(*other), model(*other))


@pytest.mark.parametrize("other", [2, 1.0, True, None])
def test_inputs_that_are_not_tensors_have_type_and_value_of_the_example(other):
    class Fallback(nn.Module):
        def forward(self, x, other):
            return "fallback"

    program = Frozen(lambda x, other: "program", Fallback(), (X, 1))
    assert program(X, other) == "fallback"
    assert program(X, 1) == "program"


class Around(nn.Module):
    """A module that has a condensed model as a part."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.model(x))


def program_of(model):
    """Return the frozen program of a model for inputs like ``X``."""
    programs = dense_implementations(model.eval(), (X,), {}, None, ["scripted"])[0]
    return programs["frozen TorchScript"]


WRAPPERS = [
    lambda program: program,
    lambda program: Prepared(program, None),
    lambda program: UnderAutocast(program, "cpu", torch.bfloat16),
    Around,
]


@pytest.mark.filterwarnings("ignore:this model was condensed under autocast")
@pytest.mark.parametrize("wrapped", WRAPPERS)
def test_state_dict_is_refused(tmp_path, wrapped):
    pytest.importorskip("safetensors")
    program = wrapped(program_of(Images()))
    state, before = copy.deepcopy(program.state_dict()), program(X)
    other = {name: one + 1 for name, one in state.items()}
    with pytest.raises(CheckpointError, match=r"state_dict has '.*weight', .* frozen program"):
        program.load_state_dict(other)
    with pytest.raises(CheckpointError, match="load the state dict into the original model"):
        program.load_state_dict(other, assign=True)
    save_sparse(tmp_path / "file", wrapped(Images()))
    with pytest.raises(CheckpointError, match="can't load weights: load the file into the orig"):
        load_sparse(tmp_path / "file", program)
    assert torch.equal(program(X), before)
    assert all(torch.equal(program.state_dict()[name], one) for name, one in state.items())


def test_state_dict_without_weights_of_the_program_is_loaded_around_it():
    model = Around(program_of(Images()))
    head = nn.Linear(4, 2)
    model.load_state_dict({f"head.{k}": v for k, v in head.state_dict().items()}, strict=False)
    assert torch.equal(model.head.weight, head.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


@pytest.mark.filterwarnings("ignore:this model was condensed under autocast")
@pytest.mark.parametrize("wrapped", WRAPPERS[:3])
@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.half(),
        lambda model: model.to(torch.float64),
        lambda model: model.to(torch.zeros(1, dtype=torch.float64)),
        lambda model: model.to("meta"),
        lambda model: model.to("cpu", torch.bfloat16),
    ],
)
def test_other_number_formats_and_devices_are_refused(wrapped, convert):
    program = wrapped(program_of(Images()))
    before = program(X)
    with pytest.raises(CheckpointError, match=r"from torch.float32 on cpu to .* convert the orig"):
        convert(program)
    assert {(one.dtype, one.device.type) for one in program.parameters()} == {
        (torch.float32, "cpu")
    }
    assert torch.equal(program(X), before)


@pytest.mark.parametrize("wrapped", WRAPPERS[:2])
@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.to("cpu"),
        lambda model: model.to(torch.float32),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.float(),
        lambda model: model.cpu(),
        lambda model: model.share_memory(),
        lambda model: model.eval(),
        lambda model: model.train(False),
        lambda model: model.requires_grad_(False),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_what_changes_no_weight_works(wrapped, convert):
    model = Images().eval()
    program = wrapped(program_of(model))
    converted = convert(program)
    for x in (X, X[:1], BYTES):
        torch.testing.assert_close(converted(x), model(x).detach())


@pytest.mark.parametrize("wrapped", WRAPPERS)
@pytest.mark.parametrize("save", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())])
def test_pickling_says_which_arguments_leave_programs_out(wrapped, save):
    program = wrapped(program_of(Images()))
    with pytest.raises(pickle.PicklingError, match="pass scripted=False, compiled=False to cond"):
        save(copy.deepcopy(program))


def test_pickling_a_compiled_program_is_refused_too():
    program = Frozen(torch.compile(Images()), Images())
    with pytest.raises(pickle.PicklingError, match="scripted=False, compiled=False"):
        pickle.dumps(program)
    assert isinstance(copy.deepcopy(program), Frozen)


def test_model_with_a_frozen_part_is_condensed_in_its_number_format(frozen, times, monkeypatch):
    model = Around(frozen(Images(), X)).eval()
    monkeypatch.setattr(assembly, "has_bfloat16", lambda _: True)
    condensed = quickly(model, "nonzero", X, precision="fastest")
    assert condensed.report.precision == "float32"
    assert "frozen program" in condensed.report.failed["as it is, bfloat16"]
    torch.testing.assert_close(condensed.model(X), model(X))
