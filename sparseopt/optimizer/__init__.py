"""``SparseOptimizer``: the wrapper, its hooks, mask updates and checkpoints."""

from sparseopt.optimizer.sparse_optimizer import SparseOptimizer

__all__ = ["SparseOptimizer"]
