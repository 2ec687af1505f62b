"""Shared by the tests of frameworks: data, records of a run, and the run without a framework.

A framework's run is recorded by torch's own step hooks. It is compared, to the last bit, with a
plain loop around a plain optimizer that is masked by hand with the oracle's masks: a loop in which
neither the framework nor `sparseopt` plays a part.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked
from tests.support.nets import CLASSES, SPARSE_NAMES, batch, loss_of
from tests.support.oracles import oracle_for
from tests.support.wrapping import settings_with

SIZE = 8
EPOCHS, STEPS_PER_EPOCH = 3, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
#: Updates are due at 5, 10 and 15.
SETTINGS = settings_with(total_steps=STEPS)
LR = 0.02
MAX_NORM = 0.3
#: The scale of the loss where gradients are scaled; each overflow halves it.
SCALE = 2.0**10

#: What is recorded of every step.
RECORDED = ("weights", "masks", "gradients", "lr", "updating")

#: The batches that a step accumulates, for each rank.
Plan = Sequence[Sequence[Sequence[int]]]


def plan(steps: int, *, ranks: int = 1, accumulate: int = 1, per_epoch: int) -> Plan:
    """Which batches each step sees if ranks take `per_epoch` batches in turn, again and again."""
    numbers = iter(range(steps * ranks * accumulate))
    steps_of_ranks = []
    for _ in range(steps):
        micro = [[next(numbers) % per_epoch for _ in range(ranks)] for _ in range(accumulate)]
        steps_of_ranks.append([[ranked[rank] for ranked in micro] for rank in range(ranks)])
    return steps_of_ranks


def dataset(batches: int) -> TensorDataset:
    """Batches 0, 1, 2 and so on, one after the other, `SIZE` examples each."""
    pairs = [batch(index, size=SIZE) for index in range(batches)]
    return TensorDataset(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))


class Recorder:
    """Records every `step()` of an optimizer.

    Attributes:
        seen: Lists with one entry for each step: "weights" and "masks" after the step, "gradients"
            (on ordinary steps, after clipping) and "lr" during the step, and "updating": whether
            it moved the masks.
    """

    def __init__(self, model: nn.Module, optimizer: SparseOptimizer):
        self.model, self.optimizer = model, optimizer
        self.seen: dict[str, list] = {key: [] for key in RECORDED}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_: Any) -> None:
        self._steps = self.optimizer.steps
        self._updating = self.optimizer.is_update_step
        self._lr = [group["lr"] for group in self.optimizer.param_groups]

    def _after(self, *_: Any) -> None:
        # Before it loads, distributed checkpointing makes a step that does not count.
        if self.optimizer.steps == self._steps:
            return
        self.seen["updating"].append(self._updating)
        self.seen["lr"].append(self._lr)
        self.seen["weights"].append(weights_of(self.model))
        self.seen["masks"].append({n: gathered(mask) for n, mask in self.optimizer.masks.items()})
        self.seen["gradients"].append(gradients_of(self.model))


def by_hand(
    model: nn.Module,
    optimizer: Optimizer,
    oracle: Any,
    steps: Plan,
    *,
    max_norm: float | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    scheduler_steps: int = 1,
    loss: Callable[[nn.Module, int], Tensor] = loss_of,
    overflows: Mapping[int, int] = MappingProxyType({}),
) -> dict[str, list]:
    """The same record of a plain loop, masked by hand; and "norm", of gradients before clipping.

    Args:
        model: A plain model.
        optimizer: A plain optimizer.
        oracle: Moves the masks.
        steps: What each step sees.
        max_norm: What gradients are clipped to.
        scheduler: A scheduler of `optimizer`.
        scheduler_steps: How often it is stepped after each step.
        loss: The loss of a model on a batch.
        overflows: For each place in `steps` that overflows, how often the scheduler is stepped
            there. Nothing else happens at such a place. If there are any, losses are scaled.
    """
    hand = HandMasked(model, optimizer, oracle)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    seen: dict[str, list] = {key: [] for key in (*RECORDED, "norm")}
    scale = SCALE if overflows else 1.0
    for place, ranks in enumerate(steps):
        if place in overflows:
            scale /= 2
            for _ in range(overflows[place]):
                scheduler.step()
            continue
        _mean_gradient(model, ranks, loss, scale)
        seen["updating"].append(oracle.is_update(hand.t + 1))
        seen["lr"].append([group["lr"] for group in optimizer.param_groups])
        seen["norm"].append(hand.apply(max_norm))
        for _ in range(scheduler_steps if scheduler is not None else 0):
            scheduler.step()
        seen["weights"].append(weights_of(model))
        seen["gradients"].append(gradients_of(model))
        seen["masks"].append(
            {n: torch.from_numpy(m.copy()).view(shapes[n]) for n, m in oracle.masks.items()}
        )
    return seen


def _mean_gradient(
    model: nn.Module,
    ranks: Sequence[Sequence[int]],
    loss: Callable[[nn.Module, int], Tensor],
    scale: float,
) -> None:
    """Give the model the mean over ranks of the mean over micro-batches, in that order.

    Losses are multiplied by `scale`, which is a power of two, and gradients divided by it.
    """
    total: dict[str, Tensor] = {}
    for indices in ranks:
        model.zero_grad()
        for index in indices:
            (loss(model, index) / len(indices) * scale).backward()
        for name, gradient in gradients_of(model).items():
            total[name] = total.get(name, 0) + gradient / len(ranks)
    for name, parameter in model.named_parameters():
        parameter.grad = total[name] / scale


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: gathered(p.detach()) for name, p in model.named_parameters()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: gathered(p.grad) for name, p in model.named_parameters()}


def gathered(tensor: Tensor) -> Tensor:
    """A copy; a DTensor is gathered from all ranks."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def autocast_to(dtype: torch.dtype) -> Callable[[nn.Module, int], Tensor]:
    """The usual loss, under autocast."""

    def loss(model: nn.Module, index: int) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return loss_of(model, index)

    return loss


def clipped_norms(seen: dict[str, list]) -> list[float]:
    """The norm of the gradients of every ordinary step, as the optimizer found them."""
    return [
        float(sum(gradient.double().square().sum() for gradient in gradients.values()) ** 0.5)
        for gradients, updating in zip(seen["gradients"], seen["updating"], strict=True)
        if not updating
    ]


def assert_same_run(
    seen: dict[str, list], reference: dict[str, list], *, exactly: bool = True
) -> None:
    """Masks moved at the same steps to the same places, and weights are equal.

    Weights are equal to the last bit, or up to the rounding of sums in double precision.
    """
    assert seen["updating"] == reference["updating"]
    assert seen["lr"] == reference["lr"]
    for t, (mine, theirs) in enumerate(zip(seen["masks"], reference["masks"], strict=True)):
        assert mine.keys() == theirs.keys()
        for name, mask in mine.items():
            assert torch.equal(mask, theirs[name]), f"mask of {name} after step {t + 1}"
    for t, (mine, theirs) in enumerate(zip(seen["weights"], reference["weights"], strict=True)):
        for name, weight in mine.items():
            off = float((weight - theirs[name]).abs().max())
            assert off <= (0.0 if exactly else 1e-9), f"{name} after step {t + 1}: off by {off}"


def live_counts(model: nn.Module, names: tuple[str, ...] = SPARSE_NAMES) -> dict[str, int]:
    """The live count of each layer by the oracle."""
    masks = oracle_for("static", model, names=names, **SETTINGS).masks
    return {name: int(mask.sum()) for name, mask in masks.items()}


def assert_masks_hold(seen: dict[str, list], counts: dict[str, int], *, pruned: bool) -> None:
    """After every step dropped weights are zero and counts are exact; by pruning, at the end."""
    for t, (weights, masks) in enumerate(zip(seen["weights"], seen["masks"], strict=True)):
        for name, mask in masks.items():
            assert not weights[name][~mask].any(), (name, t + 1)
        if not pruned:
            assert counts_of(masks) == counts
    # Layers compete with each other to be pruned.
    assert sum(counts_of(seen["masks"][-1]).values()) == sum(counts.values())


def counts_of(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def flops_by_hand(counts: dict[str, int]) -> int:
    """FLOPs of `SmallNet` on 6x6 pixels.

    Two for each live weight at each position, and one for each bias of a `Linear`.
    """
    positions = {"conv1.weight": 36, "conv2.weight": 9, "fc1.weight": 1, "fc2.weight": 1}
    return sum(2 * positions[name] * live for name, live in counts.items()) + 16 + CLASSES


def assert_same_outcome(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Two results of `resume_worker.outcome` are equal to the last bit."""
    assert left["history"] == right["history"]
    assert left["steps"] == right["steps"]
    for part in ("weights", "masks"):
        assert left[part].keys() == right[part].keys()
        for name, tensor in left[part].items():
            assert torch.equal(tensor, right[part][name]), (part, name)
    for name, state in left["state"].items():
        assert state.keys() == right["state"][name].keys()
        for key, value in state.items():
            assert torch.equal(value, right["state"][name][key]), (name, key)
