"""rigl-torch: a scheduler beside the optimizer, whose ``step`` it replaces."""

from __future__ import annotations

from typing import Any

from rigl_torch.RigL import RigLScheduler
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.overhead.contenders import DROP_FRACTION, NEVER, Contender


class RiglTorch(Contender):
    """RigL by ``RigLScheduler``, at one density for all layers but the first, which stays dense."""

    def prepare(self, optimizer: str) -> Optimizer:
        inner = super().prepare(optimizer)
        self._scheduler = RigLScheduler(
            self.model,
            inner,
            dense_allocation=self.sparsity.density,
            T_end=NEVER,
            ignore_linear_layers=False,
            delta=self.sparsity.update_every,
            alpha=DROP_FRACTION,
        )
        return inner

    def step(self) -> None:
        if self._scheduler():
            self.optimizer.step()

    @property
    def updates_next(self) -> bool:
        return (self._scheduler.step + 1) % self.sparsity.update_every == 0

    def masks(self) -> dict[str, Tensor]:
        masks = zip(self._scheduler.W, self._scheduler.backward_masks, strict=True)
        by_weight = {id(weight): mask for weight, mask in masks if mask is not None}
        return {
            name: by_weight[id(module.weight)].clone()
            for name, module in self.model.named_modules()
            if id(getattr(module, "weight", None)) in by_weight
        }

    def holders(self) -> tuple[Any, ...]:
        return (*super().holders(), self._scheduler)
