"""The base class for other libraries: the package of each, and why it is absent if it is."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import ClassVar

from torch import nn

from benchmarks.overhead.contenders import Contender, Sparsity

INSTALL = 'pip install -e ".[bench,peers]"'


class Peer(Contender):
    """Another library, or one way to use it; it imports the library when it is made.

    Attributes:
        name: The library's name in reports.
        distribution: Its package on PyPI.
        module: The module to import.
        does: What the library does in this benchmark, for the report.
        cannot: What it cannot do, for the report.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]
    module: ClassVar[str]
    does: ClassVar[str]
    cannot: ClassVar[str]

    def __init__(self, model: nn.Module, optimizer: str, sparsity: Sparsity) -> None:
        reason = self.absent()
        if reason is not None:
            raise ImportError(reason)
        super().__init__(model, optimizer, sparsity)

    @classmethod
    def version(cls) -> str | None:
        """The installed version; None if it is not installed."""
        try:
            return importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    @classmethod
    def absent(cls) -> str | None:
        """The reason why the library cannot be used; None if it can."""
        if cls.version() is None:
            return f"not installed: {INSTALL}"
        try:
            importlib.import_module(cls.module)
        # The import of another library may raise anything.
        except Exception as error:
            return f"does not import: {type(error).__name__}: {error}".splitlines()[0]
        return None
