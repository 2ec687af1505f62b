"""The saved and exported model is an ordinary model, without a trace of the optimizer."""

import pytest
import torch

from tests.support.looking import assert_same_weights
from tests.support.nets import SPARSE_NAMES, batch, make
from tests.support.processes import ROOT
from tests.support.training import train
from tests.support.wrapping import wrap

TRACE = b"sparseopt"


@pytest.fixture
def trained():
    model = make()
    optimizer = wrap(model, "AdamW")
    train(model, optimizer, 7)
    assert optimizer.is_update_step is False
    return model, optimizer


def assert_as_sparse_as(model, optimizer):
    for name, p in model.named_parameters():
        if name in SPARSE_NAMES:
            assert not p[~optimizer.masks[name]].any(), name


def test_state_dict_is_that_of_a_model_nobody_wrapped(trained, tmp_path):
    model, optimizer = trained
    file = tmp_path / "model.pt"
    torch.save(model.state_dict(), file)
    assert TRACE not in file.read_bytes()
    other = make(seed=5)
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(torch.load(file))
    assert_same_weights(other, model)
    assert_as_sparse_as(other, optimizer)


def test_whole_model_is_pickled_without_its_wrapper(trained, tmp_path):
    model, optimizer = trained
    file = tmp_path / "model.pt"
    torch.save(model, file)
    assert TRACE not in file.read_bytes()
    other = torch.load(file, weights_only=False)
    assert_same_weights(other, model)
    assert_as_sparse_as(other, optimizer)
    x, y = batch(9)
    torch.nn.functional.cross_entropy(other(x), y).backward()
    dropped = ~optimizer.masks["fc1.weight"]
    assert other.fc1.weight.grad[dropped].any(), "gradients of the copy are masked"


@pytest.mark.parametrize("how", ["a dictionary", "the model"])
def test_safetensors(trained, tmp_path, how):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, optimizer = trained
    file = tmp_path / "model.safetensors"
    if how == "a dictionary":
        safetensors.save_file(model.state_dict(), file)
    else:
        safetensors.save_model(model, str(file))
    assert TRACE not in file.read_bytes()
    other = make(seed=5)
    other.load_state_dict(safetensors.load_file(file))
    assert_same_weights(other, model)
    assert_as_sparse_as(other, optimizer)


def operators(program):
    return [(node.op, str(node.target)) for node in program.graph.nodes]


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_is_that_of_a_model_nobody_wrapped(trained, tmp_path, strict, detached):
    """`torch.export` with the optimizer attached, and after it is detached."""
    model, optimizer = trained
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    if detached:
        optimizer.detach()
    x, _ = batch(9)
    program = torch.export.export(model, (x,), strict=strict)
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert operators(program) == operators(torch.export.export(plain, (x,), strict=strict))
    file = tmp_path / "model.pt2"
    torch.export.save(program, file)
    # A program has the paths of the model's source files, and the clone's folder may have our name.
    assert TRACE not in file.read_bytes().replace(str(ROOT).encode(), b"")
    loaded = torch.export.load(file)
    torch.testing.assert_close(loaded.module()(x), plain(x))
    for name, mask in masks.items():
        assert torch.equal(loaded.state_dict[name].eq(0), ~mask | model.get_parameter(name).eq(0))


@pytest.mark.parametrize("strict", [False, True])
def test_export_before_training_is_not_taken_for_a_training_input(strict):
    model = make()
    optimizer = wrap(model)
    x, _ = batch(9, size=3)
    program = torch.export.export(model, (x,), strict=strict)
    with pytest.raises(ValueError, match="has no recorded input"):
        optimizer.flops()
    torch.testing.assert_close(program.module()(x), model(x))
    assert optimizer.flops() == optimizer.flops(model, x)
