"""What a user's own method overrides decides: starting density, structure, plan, importance."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from sparseopt import DropGrow, Gradual, Move, Redistributing, Static, UpdateSchedule
from tests.support.nets import make
from tests.support.training import backward, train
from tests.support.wrapping import wrap

#: With the usual settings: updates at steps 5, 10, ..., 25, and the end of updates at step 30.
T_END = 30


def moving(optimizer):
    return [layer for layer in optimizer.layers if not layer.is_dense]


@dataclass(frozen=True)
class DropsOldest(Gradual):
    """Starts at half of the weights, waits, and drops those of the lowest index by the cubic."""

    name: ClassVar[str] = "drops-oldest"

    @property
    def start_share(self):
        return 0.25

    def initial_density(self, density):
        return max(0.5, density)

    def moves(self, layers, update):
        left = self.excess(layers, update)
        moves = []
        for layer in layers:
            drop = min(left, layer.live - 1)
            moves.append(Move(drop, 0))
            left -= drop
        return moves

    def drop_scores(self, layer, update):
        return torch.arange(layer.live)


def planned(step, final):
    """Zhu & Gupta 2017, equation 1, from half of the weights; the first update can be at 10."""
    start = 10
    progress = min(1.0, max(0.0, (step - start) / (T_END - start)))
    return final + (0.5 - final) * (1 - progress) ** 3


def test_own_gradual_method_follows_its_plan_from_its_own_density():
    model = make()
    optimizer = wrap(model, method=DropsOldest(), init="uniform")
    numel = sum(layer.numel for layer in moving(optimizer))
    final = sum(layer.target for layer in moving(optimizer)) / numel
    assert sum(layer.live for layer in moving(optimizer)) == pytest.approx(numel / 2, abs=4)
    seen = []

    def check(step):
        live = sum(layer.live for layer in moving(optimizer))
        if step in (10, 15, 20, 25, T_END):
            assert live == pytest.approx(planned(step, final) * numel, abs=1)
            seen.append(live)

    train(model, optimizer, 40, after=check)
    assert [record.step for record in optimizer.history] == [10, 15, 20, 25, T_END]
    assert seen == sorted(seen, reverse=True)
    assert sum(layer.live for layer in moving(optimizer)) == round(final * numel)


def test_own_gradual_method_drops_by_its_own_scores():
    model = make()
    optimizer = wrap(model, method=DropsOldest(), init="uniform")
    train(model, optimizer, 14)
    before = {layer.name: layer.mask.flatten() for layer in moving(optimizer)}
    train(model, optimizer, 1, start=14)
    for layer in moving(optimizer):
        dropped = before[layer.name] & ~layer.mask.flatten()
        kept = before[layer.name] & layer.mask.flatten()
        if dropped.any():
            assert dropped.nonzero().max() < kept.nonzero().min()
    assert optimizer.history[-1].dropped > 0


@dataclass(frozen=True)
class TowardsNarrow(Redistributing):
    """Layers with fewer inputs get more of what grows."""

    name: ClassVar[str] = "towards-narrow"

    def importance(self, layer, update):
        return torch.tensor(1.0 / layer.weight[0].numel())

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


def test_own_importance_divides_what_grows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 20))
    optimizer = wrap(model, method=TowardsNarrow(), init={}, density=0.1)
    before = {layer.name: layer.live for layer in optimizer.layers}
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 60, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
    (record,) = optimizer.history
    drops = {name: int(record.fraction * live) for name, live in before.items()}
    widths = {"0.weight": 60, "2.weight": 40, "3.weight": 30}
    shares = sum(1 / width for width in widths.values())
    total = sum(drops.values())
    assert {layer.name for layer in moving(optimizer)} == widths.keys()
    for layer in optimizer.layers:
        grown = layer.live - before[layer.name] + drops[layer.name]
        assert grown == pytest.approx(total / widths[layer.name] / shares, abs=1)
    assert sum(layer.live for layer in optimizer.layers) == sum(before.values())


@dataclass(frozen=True)
class WholeRows(Static):
    """Keeps the rows whose scores have the largest sum."""

    name: ClassVar[str] = "whole-rows"

    def live_count(self, shape, target):
        width = torch.Size(shape[1:]).numel()
        return max(1, target // width) * width

    def initial_mask(self, scores, live):
        rows = live // scores[0].numel()
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        mask[scores.flatten(1).sum(1).argsort(descending=True)[:rows]] = True
        return mask


def test_own_structure_of_the_masks_is_kept():
    model = make()
    optimizer = wrap(model, method=WholeRows(), init="uniform", density=0.3)
    assert moving(optimizer)
    for layer in moving(optimizer):
        rows = layer.mask.flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))
        width = rows.shape[1]
        target = int(0.3 * layer.numel)
        assert int(rows.any(1).sum()) == max(1, target // width)


def test_given_mask_without_the_methods_structure_is_refused():
    model = nn.Sequential(nn.Linear(8, 6))
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:2] = True
    settings = {"method": WholeRows(), "density": 1 / 3}
    optimizer = wrap(model, mask={"0.weight": mask}, **settings)
    assert torch.equal(optimizer.masks["0.weight"], mask)
    mask[0, 0], mask[3, 0] = False, True
    with pytest.raises(ValueError, match=r"0\.weight"):
        wrap(nn.Sequential(nn.Linear(8, 6)), mask={"0.weight": mask}, **settings)


@dataclass(frozen=True)
class ObservesEveryThird(DropGrow):
    """Counts how often the gradient of a weight is not zero, on every third step alone."""

    name: ClassVar[str] = "observes-every-third"
    observes_dense_gradient: ClassVar[bool] = True

    def initial_layer_state(self, layer):
        return {"count": torch.zeros(layer.weight.shape)}

    def observes(self, step, schedule, total_steps):
        return step % 3 == 0 and super().observes(step, schedule, total_steps)

    def observe(self, layer, gradient, update):
        assert update.step % 3 == 0
        update.layer_state(layer)["count"] += gradient.ne(0)

    def grow_scores(self, layer, update):
        return update.layer_state(layer)["count"]


def test_own_choice_of_observed_steps_decides_where_gradients_are_dense():
    model = make()
    optimizer = wrap(model, method=ObservesEveryThird(), init="uniform")
    dense_steps = []
    for step in range(1, 41):
        backward(model, step)
        if any(layer.weight.grad[~layer.mask].any() for layer in moving(optimizer)):
            dense_steps.append(step)
        optimizer.step()
    assert not ObservesEveryThird().always_reads_dense_gradient
    assert dense_steps == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    schedule = UpdateSchedule(delta_t=5, t_end=T_END)
    read = [s for s in range(1, 41) if ObservesEveryThird().reads_dense_gradient(s, schedule, 40)]
    assert read == dense_steps
