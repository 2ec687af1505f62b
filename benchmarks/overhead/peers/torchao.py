"""torchao's pruning optimizer: weights projected to the largest of a dense copy after each step."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torchao.prototype.pat.optim import PruneOptimizer

from benchmarks.overhead.contenders import Contender
from benchmarks.overhead.inner import make_inner


class Torchao(Contender):
    """``PruneOptimizer`` with a ``MinSparsityConstraint`` on single weights, at our densities.

    Every step is an update: it restores the dense copy, steps it, keeps it and zeroes the smallest
    weights of each layer.
    """

    healing_start_step = sys.maxsize

    def prepare(self, optimizer: str) -> PruneOptimizer:
        densities = self.sparsity.by_layer(self.model)
        self._weights = {
            name: self.model.get_submodule(name).weight
            for name, density in densities.items()
            if density < 1
        }
        inner = make_inner(optimizer, self._groups(densities))
        return PruneOptimizer(inner, healing_start_step=self.healing_start_step)

    def _groups(self, densities: dict[str, float]) -> list[dict[str, Any]]:
        """A group for the dense parameters and one for each density."""
        sparse = {id(weight) for weight in self._weights.values()}
        groups: dict[float, list[Tensor]] = {}
        for name, weight in self._weights.items():
            groups.setdefault(densities[name], []).append(weight)
        dense = [weight for weight in self.model.parameters() if id(weight) not in sparse]
        pruned = [
            {
                "params": weights,
                "prox_type": "MinSparsityConstraint",
                "group_type": "KElementGrouper",
                "k": 1,
                "min_sparsity": 1 - density,
            }
            for density, weights in groups.items()
        ]
        return [{"params": dense}, *pruned] if dense else pruned

    @property
    def updates_next(self) -> bool:
        return True

    def masks(self) -> dict[str, Tensor]:
        return {name: weight.detach() != 0 for name, weight in self._weights.items()}


class TorchaoFrozen(Torchao):
    """The same after its first step, in its "healing" phase, in which masks stay."""

    healing_start_step = 1

    @property
    def updates_next(self) -> bool:
        return self.optimizer.num_steps == 0
