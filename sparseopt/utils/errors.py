"""The exceptions that only this library raises.

Bad arguments raise the built-in :class:`ValueError` or :class:`TypeError`. The classes here are for
the situations that a program may want to tell apart. Each one has a built-in base beside
:class:`SparseOptError`, so that code that catches the built-in exception works too.
"""

__all__ = [
    "CheckpointError",
    "CompactionError",
    "NoSparseLayerError",
    "RankMismatchError",
    "SparseOptError",
    "UntraceableModelError",
]


class SparseOptError(Exception):
    """The base of all exceptions that only this library raises.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptError, SparseOptimizer
        >>> model = torch.nn.LayerNorm(8)
        >>> try:
        ...     SparseOptimizer(torch.optim.SGD(model.parameters()), model)
        ... except SparseOptError as error:
        ...     print(type(error).__name__)
        NoSparseLayerError
    """


class NoSparseLayerError(SparseOptError, ValueError):
    """No weight in the optimizer can be made sparse.

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


class CheckpointError(SparseOptError, ValueError):
    """A state dict or a file does not fit: other layers, another method, or no masks.

    A frozen program of :func:`condense` raises it too, because its weights are constants.

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


class CompactionError(SparseOptError, RuntimeError):
    """The smaller model does not run, or does not compute the same as the full model.

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
        ...     compact(model, optimizer, example_inputs=torch.randn(4, 6))
        ... except CompactionError:
        ...     print("forward() has the number of neurons written out")
        forward() has the number of neurons written out
    """


class RankMismatchError(SparseOptError, RuntimeError):
    """The ranks of a distributed run have different masks, or are about to choose different ones.

    Nothing has moved on the rank that raises it.

    Example:
        >>> from sparseopt import RankMismatchError
        >>> issubclass(RankMismatchError, RuntimeError)
        True
    """


class UntraceableModelError(SparseOptError, ValueError):
    """``torch.export`` cannot trace the model, so that its graph is not known.

    Example:
        >>> import torch
        >>> from sparseopt import UntraceableModelError, find_channel_groups
        >>> class ThroughNumPy(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(torch.from_numpy(x.numpy()))
        >>> try:
        ...     find_channel_groups(ThroughNumPy(2, 2), torch.ones(1, 2))
        ... except UntraceableModelError:
        ...     print("torch.export does not see what NumPy does")
        torch.export does not see what NumPy does
    """
