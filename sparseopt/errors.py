"""The exceptions that only this library raises.

Bad arguments raise the built-in :class:`ValueError` or :class:`TypeError`; the classes here are
subclasses of :class:`ValueError` for the two situations that a program may want to tell apart.
"""

__all__ = ["CheckpointError", "NoSparseLayerError"]


class NoSparseLayerError(ValueError):
    """Nothing in the optimizer can be made sparse."""


class CheckpointError(ValueError):
    """A state dict does not belong to this optimizer: other layers, another method, or no masks."""
