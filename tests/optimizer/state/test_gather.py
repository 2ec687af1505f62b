"""Small layers are gathered and scattered together, with the same result as one by one."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.optimizer.state import gather
from tests.support.arithmetic import place_does_not_matter
from tests.support.by_hand import HandMasked
from tests.support.catalogue import build
from tests.support.looking import assert_same_weights
from tests.support.nets import make
from tests.support.oracles import oracle_for
from tests.support.training import train_step

SIZES = (5, 7, 11, 6, 9, 13, 8)
SETTINGS = {"state": "live", "seed": 3}


class Zoo(nn.Module):
    """Small layers, one large layer, and some layers with another memory layout."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        columns = weight(9, 4).t()
        with_gaps = weight(6, 10)[:, 2:9]
        channels_last = weight(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        tensors = [
            *(weight(size, 6) for size in SIZES),
            weight(70, 80),
            columns,
            with_gaps,
            channels_last,
            weight(3, 5, 2, 2),
            weight(17, 4),
        ]
        assert tensors[7].numel() > gather.CPU_SMALL
        self.weights = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)

    def set_gradients(self, step: int, *, all_of_them: bool = True) -> None:
        """Random gradients; some have another memory layout than their weights."""
        generator = torch.Generator().manual_seed(step)
        for place, weight in enumerate(self.weights):
            gradient = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            if place % 4 == 1:
                gradient = gradient.transpose(0, 1).contiguous().transpose(0, 1)
            missing = not all_of_them and (step + place) % 3 == 0
            weight.grad = None if missing else gradient


def wrap(model, name, **settings):
    """Every layer is sparse, at one of six densities."""
    densities = {f"0.{place}": 0.1 + 0.07 * (place % 6) for place in range(len(model.weights))}
    inner = build(name, model.parameters())
    return SparseOptimizer(inner, **{**SETTINGS, "init": densities, "mask": "random", **settings})


def masked_by_hand(optimizer, model):
    """Mask the weights of a plain model like the wrapped model's, and return the masks."""
    masks = [layer.mask for layer in optimizer.layers]
    with torch.no_grad():
        for weight, mask in zip(model.weights, masks, strict=True):
            weight.copy_(torch.where(mask, weight, 0.0))
    return masks


def assert_the_same(optimizer, model, plain_model, plain, masks):
    """Weights, and state of live weights, are equal bit for bit."""
    for mine, theirs, mask in zip(model.weights, plain_model.weights, masks, strict=True):
        assert torch.equal(mine, torch.where(mask, theirs, 0.0))
        for key, value in plain.state[theirs].items():
            if torch.is_tensor(value) and value.dim():
                assert torch.equal(optimizer.state[mine][key], value[mask]), key


@pytest.mark.parametrize("gradients", ["all", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_each_step_is_that_of_the_plain_optimizer_on_masked_weights(name, dtype, gradients):
    model, plain_model = Zoo(dtype), Zoo(dtype)
    optimizer = wrap(model, name, method="static")
    plain = build(name, plain_model.parameters())
    masks = masked_by_hand(optimizer, plain_model)
    exact = place_does_not_matter(name, {}, dtype)
    for step in range(1, 8):
        for net in (model, plain_model):
            net.set_gradients(step, all_of_them=gradients == "all")
        for weight, mask in zip(plain_model.weights, masks, strict=True):
            if weight.grad is not None:
                weight.grad = torch.where(mask, weight.grad, 0.0)
        optimizer.step()
        plain.step()
        if exact:
            assert_the_same(optimizer, model, plain_model, plain, masks)
        else:
            for mine, theirs in zip(model.weights, plain_model.weights, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0.05, atol=1e-3)


@pytest.mark.filterwarnings("ignore:a sparse model was loaded after:UserWarning")
def test_values_that_were_written_to_dropped_weights_are_zero_after_the_step():
    model = Zoo()
    optimizer = wrap(model, "SGD", method="static")
    model.set_gradients(1)
    with torch.no_grad():
        for weight in model.weights:
            weight[0] = float("nan")
        for layer in optimizer.layers:
            layer.weight[layer.mask] = 1.0
    optimizer.step()
    for layer in optimizer.layers:
        assert not layer.weight[~layer.mask].any()
        assert layer.weight[layer.mask].isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("method", ["rigl", "pruning"])
def test_steps_and_updates_are_those_of_a_plain_optimizer_masked_by_hand(
    method, channels_last, monkeypatch
):
    monkeypatch.setattr(gather, "WORTH_A_BUNDLE", 2)
    model, twin = make(channels_last=channels_last), make(channels_last=channels_last)
    settings = {"density": 0.2, "total_steps": 24, "delta_t": 4, "seed": 3, "init": "uniform"}
    reference = HandMasked(
        twin, build("AdamW", twin.parameters()), oracle_for(method, twin, **settings)
    )
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, state="live", **settings)
    for step in range(1, 21):
        train_step(model, optimizer, step)
        reference.step()
        assert_same_weights(model, twin)
    assert len(optimizer.history) >= 4


def test_small_layers_are_put_together_whatever_their_memory_order():
    optimizer = wrap(Zoo(), "SGD")
    alone = [part.members[0].name for part in gather.parts_of(optimizer.layers)[:-1]]
    # The large one, and the one with gaps: channels-last and transposed ones are with the others.
    assert alone == ["0.7", "0.9"]


def steps(model, optimizer, first, last):
    for step in range(first, last + 1):
        model.set_gradients(step)
        optimizer.step()


SCHEDULE = {"method": "rigl", "delta_t": 3, "total_steps": 40, "alpha": 0.5}


@pytest.mark.filterwarnings("ignore:the model was sparse before:UserWarning")
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_run_that_is_resumed_is_the_run_that_was_not_interrupted(name):
    straight, interrupted = Zoo(), Zoo()
    reference = wrap(straight, name, **SCHEDULE)
    steps(straight, reference, 1, 14)
    optimizer = wrap(interrupted, name, **SCHEDULE)
    steps(interrupted, optimizer, 1, 7)
    file = io.BytesIO()
    torch.save([interrupted.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved_model, saved_optimizer = torch.load(file)
    resumed = Zoo()
    resumed.load_state_dict(saved_model)
    optimizer = wrap(resumed, name, **{**SCHEDULE, "seed": 4})
    optimizer.load_state_dict(saved_optimizer)
    steps(resumed, optimizer, 8, 14)
    assert len(reference.history) == 4
    for mine, theirs in zip(resumed.weights, straight.weights, strict=True):
        assert torch.equal(mine, theirs)
        for key, value in reference.state[theirs].items():
            assert torch.equal(torch.as_tensor(optimizer.state[mine][key]), torch.as_tensor(value))


def test_next_step_starts_from_the_state_that_was_loaded():
    """The result does not depend on how its small layers were gathered before."""
    model, other = Zoo(), Zoo()
    optimizer, source = wrap(model, "SGD", **SCHEDULE), wrap(other, "SGD", **SCHEDULE)
    steps(model, optimizer, 1, 2)
    steps(other, source, 1, 5)
    model.load_state_dict(other.state_dict())
    optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
    for net, mine in ((model, optimizer), (other, source)):
        steps(net, mine, 6, 8)
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        assert torch.equal(mine, theirs)


def test_weights_may_change_their_memory_format_or_storage_between_steps():
    model, reference = Zoo(), Zoo()
    optimizer, untouched = wrap(model, "SGD", **SCHEDULE), wrap(reference, "SGD", **SCHEDULE)
    for step in range(1, 11):
        if step == 5:
            for weight in model.weights:
                weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        if step == 8:
            for weight in model.weights:
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)
        for net, mine in ((model, optimizer), (reference, untouched)):
            net.set_gradients(step)
            mine.step()
    for mine, theirs in zip(model.weights, reference.weights, strict=True):
        assert torch.equal(mine, theirs)


def test_memory_held_between_steps_is_the_positions_of_small_layers_only():
    """Four bytes a live weight, of layers of at most 4096 weights.

    In a small network, to put these positions together takes as long as to gather by them.
    Nothing else that a step needs is held, and of larger layers nothing is.
    """
    layers = [nn.Linear(32, 32, bias=False) for _ in range(50)]
    parameters = [layer.weight for layer in layers]
    inner = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    optimizer = SparseOptimizer(inner, method="static", density=0.1, init="er", seed=3)
    for weight in parameters:
        weight.grad = torch.ones_like(weight)
    before = held_bytes()
    for _ in range(3):
        optimizer.step()
    live = sum(layer.live for layer in optimizer.layers)
    first_weights = sum(weight.numel() for weight in parameters)
    bookkeeping = 32 * len(parameters)
    # The first step frees the weights from before masking, and creates momentum.
    positions = 4 * live
    grown = held_bytes() - before + 4 * first_weights - 4 * live - positions
    assert 0 <= grown < bookkeeping


def held_bytes() -> int:
    """Bytes of all existing tensors."""
    gc.collect()
    storages = [
        thing.untyped_storage()
        for thing in gc.get_objects()
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.layout == torch.strided
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
