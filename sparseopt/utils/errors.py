"""The exceptions that only this library raises.

Bad arguments raise the built-in :class:`ValueError` or :class:`TypeError`; the classes here are
subclasses of :class:`ValueError` for the two situations that a program may want to tell apart.
"""

__all__ = ["CheckpointError", "NoSparseLayerError"]


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
