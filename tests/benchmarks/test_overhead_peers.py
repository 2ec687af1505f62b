"""Every library in the benchmark masks and updates as the benchmark says.

Those that are not installed are skipped: they are in the extra ``peers``.
"""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.overhead.case import CHOICES
from benchmarks.overhead.contenders import DROP_FRACTION, Contender, Sparsity
from benchmarks.overhead.peers import INSTALL, Peer
from benchmarks.overhead.steps import StepTimer

# Warnings of other libraries cannot be fixed here.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
DENSITY, UPDATE_EVERY = 0.22, 3
SPARSITY = Sparsity(DENSITY, UPDATE_EVERY)
MOVING = [name for name in CHOICES if name not in ("torch.nn.utils.prune", "torchao, frozen")]


def make(name: str, optimizer: str = "adamw-for-loop") -> tuple[Contender, StepTimer]:
    """A contender on four linear layers of one size, and its stepper."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(40, 40, bias=False) for _ in range(4)))
    timer = StepTimer(dict(model.named_parameters()), CPU)
    try:
        return CHOICES[name](model, optimizer, SPARSITY), timer
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


def run(contender: Contender, timer: StepTimer, steps: int) -> None:
    for _ in range(steps):
        timer(contender)


def live(masks: dict[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize("optimizer", ["sgd-for-loop", "adamw-foreach"])
@pytest.mark.parametrize("name", CHOICES)
def test_weights_are_zero_where_masks_say_so_and_few_are_not(name: str, optimizer: str) -> None:
    contender, timer = make(name, optimizer)
    run(contender, timer, 2 * UPDATE_EVERY + 1)
    masks = contender.masks()
    total = sum(mask.numel() for mask in masks.values())
    # SparseLab draws its masks weight by weight.
    assert live(masks) / total == pytest.approx(DENSITY, abs=0.02)
    if name == "SparseLab":
        return
    names = [f"{layer}.weight" for layer in masks]
    for mask, weight in zip(masks.values(), contender.weights(names), strict=True):
        assert not weight[~mask].any()
        assert weight[mask].count_nonzero() > 0.6 * mask.sum()


@pytest.mark.parametrize("name", CHOICES)
def test_masks_move_at_updates_alone_and_only_where_they_should(name: str) -> None:
    contender, timer = make(name)
    run(contender, timer, UPDATE_EVERY)
    before = contender.masks()
    run(contender, timer, UPDATE_EVERY - 1)
    between = contender.masks()
    run(contender, timer, 1)
    after = contender.masks()
    # Every step of torchao is an update.
    kept = all(torch.equal(before[layer], between[layer]) for layer in before)
    assert kept == (name != "torchao")
    moved = any(not torch.equal(between[layer], after[layer]) for layer in between)
    assert moved == (name in MOVING)


@pytest.mark.parametrize("name", ["sparseopt, live", "rigl-torch", "sparsimony"])
def test_update_is_rigl_as_numpy_does_it(name: str) -> None:
    contender, timer = make(name)
    run(contender, timer, 2 * UPDATE_EVERY - 1)
    index, layer = 2 * UPDATE_EVERY - 1, "2"
    names = [f"{layer}.weight"]
    weight = contender.weights(names)[0].detach().numpy().copy().ravel()
    gradient = timer.gradients(index, [torch.empty(40, 40)])[0].numpy().ravel()
    mask = contender.masks()[layer].numpy().ravel()
    if name == "sparsimony":
        # It lets the optimizer step before it looks at the weights.
        return_to = contender.optimizer.step
        contender.optimizer.step = lambda: None
    assert contender.updates_next
    timer(contender)
    if name == "sparsimony":
        contender.optimizer.step = return_to

    dropped = int(DROP_FRACTION * mask.sum())
    alive = np.flatnonzero(mask)
    survivors = alive[np.argsort(np.abs(weight[alive]), kind="stable")[dropped:]]
    candidates = np.setdiff1d(np.arange(mask.size), survivors)
    grown = candidates[np.argsort(-np.abs(gradient[candidates]), kind="stable")[:dropped]]
    expected = np.zeros_like(mask)
    expected[np.concatenate([survivors, grown])] = True
    assert np.array_equal(contender.masks()[layer].numpy().ravel(), expected)


def test_torchao_keeps_the_largest_of_its_dense_copy() -> None:
    contender, timer = make("torchao")
    run(contender, timer, 2 * UPDATE_EVERY)
    weight = contender.model[2].weight
    dense = contender.optimizer.state[weight]["latent"].abs().flatten()
    kept = dense.argsort(descending=True)[: round(DENSITY * dense.numel())]
    assert set(kept.tolist()) == set(weight.detach().flatten().nonzero().flatten().tolist())


def test_library_of_linear_layers_refuses_convolutions_by_name() -> None:
    make("SparseLab")
    with pytest.raises(ImportError, match="knows linear layers only"):
        CHOICES["SparseLab"](nn.Sequential(nn.Conv2d(3, 8, 3)), "sgd-for-loop", SPARSITY)


def test_library_that_is_not_installed_says_how_to_get_it() -> None:
    class Absent(Peer):
        distribution = "no-such-distribution-of-nothing"

    assert Absent.version() is None
    with pytest.raises(ImportError, match="not installed: ") as raised:
        Absent(nn.Linear(2, 2), "sgd-for-loop", SPARSITY)
    assert INSTALL in str(raised.value)


def test_library_that_breaks_while_it_is_imported_says_how() -> None:
    class Broken(Peer):
        distribution = "torch"
        module = "no_such_module_at_all"

    with pytest.raises(ImportError, match="does not import: ModuleNotFoundError"):
        Broken(nn.Linear(2, 2), "sgd-for-loop", SPARSITY)
