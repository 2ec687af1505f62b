"""Another thread or process that reads the model during a step never finds a cleared layer."""

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, find_channel_groups
from sparseopt.optimizer.state import gather
from tests.support.catalogue import build
from tests.support.nets import CLASSES, batch
from tests.support.watching import Sightings

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 3, "seed": 3, "init": "uniform"}
METHODS = ["static", "set", "rigl", "srigl", "mest", "snfs", "pruning", "rigl-struct"]


class Sizes(nn.Module):
    """Layers that are gathered together, and larger layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 64, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(64 * 9, 20)
        self.fc2 = nn.Linear(20, 16)
        self.fc3 = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def sizes(*, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Sizes().to(memory_format=layout)


def wrap(model: nn.Module, method: str, state: str) -> SparseOptimizer:
    settings = dict(SETTINGS)
    if method == "rigl-struct":
        settings["init"] = "erk"
        method = RigLStruct(groups=find_channel_groups(model, torch.zeros(2, 3, 6, 6)))
    return SparseOptimizer(
        build("AdamW", model.parameters()), model, method=method, state=state, **settings
    )


def backward(model: nn.Module, optimizer: SparseOptimizer, index: int) -> None:
    optimizer.zero_grad()
    x, y = batch(index)
    F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_weight_is_as_it_was_or_as_it_will_be(method, channels_last, monkeypatch):
    monkeypatch.setattr(gather, "WORTH_A_BUNDLE", 2)
    model = sizes(channels_last=channels_last)
    optimizer = wrap(model, method, "live")
    for index in range(1, 8):
        backward(model, optimizer, index)
        # Layers that are full are the inner optimizer's to write.
        sparse = {layer.name for layer in optimizer.layers if not layer.is_full}
        seen = Sightings(model, optimizer.step)
        for name in sparse:
            for value in seen.between[name]:
                assert ((value == seen.before[name]) | (value == seen.after[name])).all(), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_live_weights_are_never_zero_for_a_moment(method, channels_last, state):
    model = sizes(channels_last=channels_last)
    optimizer = wrap(model, method, state)
    for index in range(1, 8):
        backward(model, optimizer, index)
        seen = Sightings(model, optimizer.step)
        for name, values in seen.between.items():
            stays = (seen.before[name] != 0) & (seen.after[name] != 0)
            assert all(value[stays].all() for value in values), name


def write_into(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(0.5)


def write_one(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.view(-1)[3] = 0.5


def load(weight: nn.Parameter) -> None:
    holder = nn.Linear(1, 1, bias=False)
    holder.weight = weight
    holder.load_state_dict({"weight": torch.ones_like(weight)})


def assign(weight: nn.Parameter) -> None:
    weight.data = torch.ones_like(weight)


def write_past_autograd(weight: nn.Parameter) -> None:
    weight.data.add_(0.5)


@pytest.mark.parametrize("write", [write_into, write_one, load, assign, write_past_autograd])
@pytest.mark.parametrize("shape", [(8, 8), (100, 200), (400, 400)])
def test_outside_writes_to_dropped_weights_are_zero_after_the_next_step(write, shape, state):
    weight = nn.Parameter(torch.randn(shape))
    sgd = torch.optim.SGD([weight], lr=0.1)
    optimizer = SparseOptimizer(sgd, method="static", density=0.1, init={}, state=state)
    mask = optimizer.layers[0].mask
    for _ in range(3):
        weight.grad = torch.ones(shape)
        optimizer.step()
    write(weight)
    written = weight.detach().clone()
    weight.grad = torch.ones(shape)
    optimizer.step()
    assert not weight[~mask].any()
    assert torch.equal(weight[mask], written[mask] - 0.1)


def test_entry_that_is_written_past_autograd_is_zero_after_a_hundred_steps():
    weight = nn.Parameter(torch.randn(400, 400))
    sgd = torch.optim.SGD([weight], lr=0.1)
    optimizer = SparseOptimizer(sgd, method="static", density=0.1, init={})
    mask = optimizer.layers[0].mask
    weight.grad = torch.ones(400, 400)
    optimizer.step()
    weight.data.view(-1)[int((~mask).view(-1).nonzero()[-1])] = 1.0
    for _ in range(100):
        optimizer.step()
    assert not weight[~mask].any()


SIZE = 512


def train_shared(weight: nn.Parameter, steps: int) -> None:
    torch.set_num_threads(1)
    sgd = torch.optim.SGD([weight], lr=1e-4)
    optimizer = SparseOptimizer(
        sgd, method="static", density=0.1, init={}, mask="nonzero", state="live"
    )
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()


def shared_weight() -> nn.Parameter:
    weight = torch.zeros(SIZE * SIZE)
    weight[torch.randperm(SIZE * SIZE)[: SIZE * SIZE // 10]] = 1.0
    return nn.Parameter(weight.view(SIZE, SIZE).share_memory_())


@pytest.mark.slow
def test_another_process_finds_all_live_weights_at_any_moment():
    weight = shared_weight()
    live = int(weight.count_nonzero())
    trainer = mp.get_context("fork").Process(target=train_shared, args=(weight, 300))
    trainer.start()
    fewest = live
    while trainer.is_alive():
        fewest = min(fewest, int(weight.count_nonzero()))
    trainer.join()
    assert trainer.exitcode == 0
    assert fewest == live


@pytest.mark.slow
def test_processes_that_train_one_model_lose_no_weight():
    weight = shared_weight()
    live = int(weight.count_nonzero())
    context = mp.get_context("fork")
    trainers = [context.Process(target=train_shared, args=(weight, 200)) for _ in range(2)]
    for trainer in trainers:
        trainer.start()
    for trainer in trainers:
        trainer.join()
    assert [trainer.exitcode for trainer in trainers] == [0, 0]
    assert int(weight.count_nonzero()) == live
