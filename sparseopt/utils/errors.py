"""The exceptions that only this library raises.

Bad arguments raise the built-in :class:`ValueError` or :class:`TypeError`. The classes here are for
the situations that a program may want to tell apart.
"""

__all__ = [
    "CheckpointError",
    "CompactionError",
    "NoSparseLayerError",
    "RankMismatchError",
    "UntraceableModelError",
]


class NoSparseLayerError(ValueError):
    """Nothing in the optimizer can be made sparse.

    Example:
        >>> import torch
        >>> from sparseopt import NoSparseLayerError, SparseOptimizer
        >>> model = torch.nn.LayerNorm(8)
        >>> try:
        ...     SparseOptimizer(torch.optim.SGD(model.parameters()), model)
        ... except NoSparseLayerError:
        ...     print("normalisation is never made sparse")
        normalisation is never made sparse
    """


class CheckpointError(ValueError):
    """A state dict does not belong to this optimizer: other layers, another method, or no masks.

    Example:
        >>> import torch
        >>> from sparseopt import CheckpointError, SparseOptimizer
        >>> model = torch.nn.Linear(8, 8)
        >>> plain = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> saved = plain.state_dict()
        >>> optimizer = SparseOptimizer(plain, model, total_steps=1000)
        >>> try:
        ...     optimizer.load_state_dict(saved)
        ... except CheckpointError as error:
        ...     print(str(error).partition(".")[0])
        the state dict has no masks
    """


class CompactionError(RuntimeError):
    """A smaller model could be made, but does not run or does not compute the same.

    Example:
        >>> import torch
        >>> from sparseopt import CompactionError, SparseOptimizer, compact
        >>> class FourNeurons(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first, self.last = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         return self.last(self.first(x).relu().view(-1, 4))
        >>> model, neurons = FourNeurons(), torch.tensor([True, False, True, True])
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static",
        ...     init={"last": 1.0}, mask={"first": neurons[:, None].expand(4, 6)})
        >>> try:
        ...     compact(model, optimizer, torch.randn(4, 6))
        ... except CompactionError:
        ...     print("forward() has the number of neurons written out")
        forward() has the number of neurons written out
    """


class RankMismatchError(RuntimeError):
    """The ranks of a distributed run have different masks, or are about to choose different ones.

    Nothing has moved on the rank that raises it.

    Example:
        >>> from sparseopt import RankMismatchError
        >>> issubclass(RankMismatchError, RuntimeError)
        True
    """


class UntraceableModelError(ValueError):
    """The graph of a model cannot be had: ``torch.export`` refuses it.

    Example:
        >>> import torch
        >>> from sparseopt import UntraceableModelError, find_channel_groups
        >>> class ThroughNumPy(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(torch.from_numpy(x.numpy()))
        >>> try:
        ...     find_channel_groups(ThroughNumPy(2, 2), torch.ones(1, 2))
        ... except UntraceableModelError:
        ...     print("no graph has what NumPy does")
        no graph has what NumPy does
    """
