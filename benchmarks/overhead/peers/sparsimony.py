"""sparsimony: parametrizations that mask in the forward pass, and a sparsifier that moves them."""

from __future__ import annotations

from typing import Any

from sparsimony.distributions.base import ERKDistribution
from sparsimony.dst.rigl import RigL
from sparsimony.schedulers.base import ConstantScheduler
from sparsimony.utils import get_mask, get_parametrization
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.overhead.contenders import DROP_FRACTION, NEVER, Contender


class Sparsimony(Contender):
    """RigL by its ``RigL`` sparsifier, with its own ERK."""

    def prepare(self, optimizer: str) -> Optimizer:
        self._names = list(self.sparsity.by_layer(self.model))
        inner = super().prepare(optimizer)
        self._sparsifier = RigL(
            ConstantScheduler(DROP_FRACTION, t_end=NEVER, delta_t=self.sparsity.update_every),
            ERKDistribution(),
            inner,
            sparsity=1 - self.sparsity.density,
            # The weights stay those that everyone starts with.
            init_method=None,
        )
        self._sparsifier.prepare(
            self.model, [{"tensor_fqn": f"{name}.weight"} for name in self._names]
        )
        for name in self._names:
            # As after its first update. Until then it adds up all gradients, at every step.
            get_parametrization(self.model.get_submodule(name)).accumulate = False
        return inner

    def step(self) -> None:
        self.optimizer.step()
        self._sparsifier.step()

    @property
    def updates_next(self) -> bool:
        return (self._sparsifier._step_count + 1) % self.sparsity.update_every == 0

    def masks(self) -> dict[str, Tensor]:
        return {name: get_mask(self.model.get_submodule(name)).bool() for name in self._names}

    def holders(self) -> tuple[Any, ...]:
        return (*super().holders(), self._sparsifier)
