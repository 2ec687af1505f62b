"""Libraries that do RigL: rigl-torch and sparsimony."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.overhead.contenders import DROP_FRACTION, NEVER
from benchmarks.overhead.peers.base import Peer

DENSE_MOMENTS = "masks SGD's momentum but none of AdamW's moments, which stay dense either way"


class RiglTorch(Peer):
    """A scheduler beside the optimizer, whose ``step`` it replaces."""

    name = distribution = "rigl-torch"
    module = "rigl_torch.RigL"
    does = "RigL, the same density in every layer but the first, which stays dense"
    cannot = (
        "ERK; its layers include embeddings and LayerNorm, which it makes sparse too; "
        f"{DENSE_MOMENTS}"
    )

    def prepare(self, optimizer: str) -> Optimizer:
        from rigl_torch.RigL import RigLScheduler

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


class Sparsimony(Peer):
    """Parametrizations that mask in the forward pass, and a sparsifier that moves the masks."""

    name = distribution = "sparsimony"
    module = "sparsimony.dst.rigl"
    does = "RigL with ERK, masks multiplied in during the forward pass"
    cannot = DENSE_MOMENTS

    def prepare(self, optimizer: str) -> Optimizer:
        from sparsimony.distributions.base import ERKDistribution
        from sparsimony.dst.rigl import RigL
        from sparsimony.schedulers.base import ConstantScheduler
        from sparsimony.utils import get_parametrization

        self._names = list(self.sparsity.by_layer(self.model))
        inner = super().prepare(optimizer)
        self._sparsifier = RigL(
            ConstantScheduler(DROP_FRACTION, t_end=NEVER, delta_t=self.sparsity.update_every),
            ERKDistribution(),
            inner,
            sparsity=1 - self.sparsity.density,
            # All contenders start with the same weights.
            init_method=None,
        )
        self._sparsifier.prepare(
            self.model, [{"tensor_fqn": f"{name}.weight"} for name in self._names]
        )
        for name in self._names:
            # This is its state after the first update. Before, it accumulates all gradients.
            get_parametrization(self.model.get_submodule(name)).accumulate = False
        return inner

    def step(self) -> None:
        self.optimizer.step()
        self._sparsifier.step()

    @property
    def updates_next(self) -> bool:
        return (self._sparsifier._step_count + 1) % self.sparsity.update_every == 0

    def masks(self) -> dict[str, Tensor]:
        from sparsimony.utils import get_mask

        return {name: get_mask(self.model.get_submodule(name)).bool() for name in self._names}

    def holders(self) -> tuple[Any, ...]:
        return (*super().holders(), self._sparsifier)
