"""Libraries whose masks do not move by gradients: torchao and torch.nn.utils.prune."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import Optimizer

from benchmarks.overhead.contenders import make_inner
from benchmarks.overhead.peers.base import Peer


class Torchao(Peer):
    """``PruneOptimizer`` with a ``MinSparsityConstraint`` on single weights, at our densities.

    Every step is an update: it restores the dense copy, steps it, keeps it and zeroes the smallest
    weights of each layer.
    """

    name = distribution = "torchao"
    module = "torchao.prototype.pat.optim"
    does = (
        "PruneOptimizer with MinSparsityConstraint: after every step keeps the largest weights of "
        "a dense copy, at our densities; so every step is an update"
    )
    cannot = "RigL"
    healing_start_step = sys.maxsize

    def prepare(self, optimizer: str) -> Optimizer:
        from torchao.prototype.pat.optim import PruneOptimizer

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
        groups: dict[float, list[Tensor]] = defaultdict(list)
        for name, weight in self._weights.items():
            groups[densities[name]].append(weight)
        sparse = {id(weight) for weight in self._weights.values()}
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
    """Torchao after its first step, in its "healing" phase, in which masks stay."""

    name = "torchao, frozen"
    does = "the same after its first step, in its healing phase: masks stay"
    healing_start_step = 1

    @property
    def updates_next(self) -> bool:
        return self.optimizer.num_steps == 0


class TorchPrune(Peer):
    """Random masks at our densities, which never move; a hook multiplies them in."""

    name = module = "torch.nn.utils.prune"
    distribution = "torch"
    does = "random masks at our densities, multiplied in before the forward pass"
    cannot = "RigL: masks never move"

    def prepare(self, optimizer: str) -> Optimizer:
        inner = super().prepare(optimizer)
        self._modules: dict[str, nn.Module] = {}
        for name, density in self.sparsity.by_layer(self.model).items():
            if density < 1:
                module = self._modules[name] = self.model.get_submodule(name)
                prune.random_unstructured(module, "weight", amount=1 - density)
        return inner

    def weights(self, names: Sequence[str]) -> list[Tensor]:
        for module in self._modules.values():
            for hook in module._forward_pre_hooks.values():
                hook(module, ())
        return super().weights(names)

    def masks(self) -> dict[str, Tensor]:
        return {name: module.weight_mask.bool() for name, module in self._modules.items()}
