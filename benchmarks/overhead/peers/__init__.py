"""Other libraries for sparse training, each used as its own documentation describes."""

from benchmarks.overhead.peers.base import INSTALL, Peer
from benchmarks.overhead.peers.masks import Torchao, TorchaoFrozen, TorchPrune
from benchmarks.overhead.peers.rigl import RiglTorch, Sparsimony
from benchmarks.overhead.peers.sparselab import SparseLab

__all__ = ["INSTALL", "NOT_DRIVEN", "PEERS", "Peer"]

#: By name, in the order of the report.
PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (RiglTorch, Sparsimony, Torchao, TorchaoFrozen, TorchPrune, SparseLab)
}
#: A library that can't run in one process with ours.
NOT_DRIVEN = (
    "`cerebras-pytorch` is missing: version 2.10.0 is compiled for torch 2.4.0 only, and sparseopt "
    "needs 2.14."
)
