"""Which other libraries take part, what each does and what it cannot do, and whether it is here."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.overhead.contenders import Contender

PACKAGE = "benchmarks.overhead.peers"
INSTALL = 'pip install -e ".[bench,peers]"'


@dataclass(frozen=True)
class Peer:
    """Another library, or one way of using it.

    Its package on PyPI, the module and class that drive it, and for the report what it does in this
    benchmark and what it cannot do.
    """

    name: str
    distribution: str
    adapter: str
    does: str
    cannot: str

    def version(self) -> str | None:
        """The installed version; None if it is not installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def load(self) -> Callable[..., Contender]:
        """Return its contender's class, or raise ImportError that says why it can't be driven."""
        if self.version() is None:
            raise ImportError(f"not installed: {INSTALL}")
        module, _, name = self.adapter.partition(":")
        try:
            return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
        # Other people's modules fail in any way when imported.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ImportError(f"does not import: {reason.splitlines()[0]}") from error


PEERS = (
    Peer(
        "rigl-torch",
        "rigl-torch",
        "rigl_torch:RiglTorch",
        "RigL, the same density in every layer but the first, which stays dense",
        "ERK; its layers include embeddings and LayerNorm, which it makes sparse too; masks SGD's "
        "momentum but none of AdamW's moments, which stay dense either way",
    ),
    Peer(
        "sparsimony",
        "sparsimony",
        "sparsimony:Sparsimony",
        "RigL with ERK, masks multiplied in during the forward pass",
        "masks SGD's momentum but none of AdamW's moments, which stay dense either way",
    ),
    Peer(
        "torchao",
        "torchao",
        "torchao:Torchao",
        "PruneOptimizer with MinSparsityConstraint: after every step keeps the largest weights of "
        "a dense copy, at our densities; so every step is an update",
        "RigL",
    ),
    Peer(
        "torchao, frozen",
        "torchao",
        "torchao:TorchaoFrozen",
        "the same after its first step, in its healing phase: masks stay",
        "RigL",
    ),
    Peer(
        "torch.nn.utils.prune",
        "torch",
        "torch_prune:TorchPrune",
        "random masks at our densities, multiplied in before the forward pass",
        "RigL: masks never move",
    ),
    Peer(
        "SparseLab",
        "sparselab",
        "sparselab:SparseLab",
        "RigL at our densities in linear layers that store and multiply live weights only; so its "
        "forward and backward passes differ too, and whole training steps are what compares",
        "convolutions; GPUs; hand an optimizer's state over to other weights when masks move; save "
        "which weights are live in a state dict",
    ),
)
#: One that can't be driven in one process with us.
NOT_DRIVEN = (
    "`cerebras-pytorch` is missing: version 2.10.0 is compiled for torch 2.4.0 alone, and we need "
    "2.8."
)
