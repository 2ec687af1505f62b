"""SparseLab: linear layers that store and multiply live weights only, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.overhead.contenders import DROP_FRACTION
from benchmarks.overhead.peers.base import Peer


class SparseLab(Peer):
    """RigL by its ``RigL``, with every sparse linear layer replaced by a ``SparseLinear``."""

    name = "SparseLab"
    distribution = module = "sparselab"
    does = (
        "RigL at our densities in linear layers that store and multiply live weights only; so its "
        "forward and backward passes differ too, and whole training steps are what compares"
    )
    cannot = (
        "convolutions; GPUs; hand an optimizer's state over to other weights when masks move; save "
        "which weights are live in a state dict"
    )

    def prepare(self, optimizer: str) -> Optimizer:
        import sparselab

        densities = self.sparsity.by_layer(self.model)
        if any(isinstance(module, nn.Conv2d) for module in self.model.modules()):
            raise ImportError("knows linear layers only")
        if any(weight.device.type != "cpu" for weight in self.model.parameters()):
            raise ImportError("runs on the CPU only")
        sparse = {name: density for name, density in densities.items() if density < 1}
        self._layers = {name: self._replace(name, density) for name, density in sparse.items()}
        self._algorithm = sparselab.RigL(
            sparsity=1 - self.sparsity.density,
            drop_fraction=DROP_FRACTION,
            update_freq=self.sparsity.update_every,
            seed=0,
        )
        self.model.apply(self._algorithm)
        return super().prepare(optimizer)

    def _replace(self, name: str, density: float) -> Any:
        import sparselab

        linear = self.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            size, bias = (linear.in_features, linear.out_features), linear.bias is not None
            layer = sparselab.SparseLinear(*size, bias=bias, sparsity=1 - density)
        self.model.set_submodule(name, layer)
        return layer

    def weights(self, names: Sequence[str]) -> list[Tensor]:
        sparse = {f"{name}.weight": layer._values for name, layer in self._layers.items()}
        return [sparse[name] if name in sparse else attrgetter(name)(self.model) for name in names]

    def step(self) -> None:
        self.optimizer.step()
        self._algorithm.step()

    @property
    def updates_next(self) -> bool:
        return (self._algorithm._step_idx + 1) % self.sparsity.update_every == 0

    def before_update(self, samples: int) -> None:
        # An update computes the dense gradient from a layer's last input, so the layer needs one.
        generator = torch.Generator().manual_seed(0)
        for layer in self._layers.values():
            inputs = torch.randn(samples, layer.in_features, generator=generator)
            layer(inputs.requires_grad_()).square().mean().backward()

    def masks(self) -> dict[str, Tensor]:
        return {name: _mask_of(layer) for name, layer in self._layers.items()}

    def holders(self) -> tuple[Any, ...]:
        from sparselab.ops import _transpose_cache

        # The memory of its C++ objects is visible only through views.
        rows = [layer._csr for layer in self._layers.values()]
        names = ("col_indices", "row_start", "row_nnz", "row_capacity")
        arrays = [np.asarray(getattr(row, name)) for row in rows for name in names]
        known = {id(row) for row in rows}
        transposed = [kept for key, kept in _transpose_cache.items() if key in known]
        for _, _, other, permutation in transposed:
            arrays += [np.asarray(getattr(other, name)) for name in ("values", *names)]
            arrays.append(permutation)
        return (*super().holders(), self._algorithm, arrays)


def _mask_of(layer: Any) -> Tensor:
    mask = torch.zeros(layer.out_features, layer.in_features, dtype=torch.bool)
    columns = torch.from_numpy(np.array(layer._csr.col_indices)).long()
    starts, counts = np.asarray(layer._csr.row_start), np.asarray(layer._csr.row_nnz)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        mask[row, columns[start : start + count]] = True
    return mask
