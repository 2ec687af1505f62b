"""torch.nn.utils.prune: masks that a hook before the forward pass multiplies in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils import prune
from torch.optim import Optimizer

from benchmarks.overhead.contenders import Contender


class TorchPrune(Contender):
    """Random masks at our densities, which never move."""

    def prepare(self, optimizer: str) -> Optimizer:
        inner = super().prepare(optimizer)
        self._modules = [
            (name, self.model.get_submodule(name), density)
            for name, density in self.sparsity.by_layer(self.model).items()
            if density < 1
        ]
        for _, module, density in self._modules:
            prune.random_unstructured(module, "weight", amount=1 - density)
        return inner

    def weights(self, names: Sequence[str]) -> list[Tensor]:
        for _, module, _ in self._modules:
            for hook in module._forward_pre_hooks.values():
                hook(module, ())
        return super().weights(names)

    def masks(self) -> dict[str, Tensor]:
        return {name: module.weight_mask.bool() for name, module, _ in self._modules}
