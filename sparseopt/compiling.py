"""Keeping ``torch.compile`` out of code that decides by the values of tensors.

What moves masks can't be a graph: it would break into dozens, and be compiled anew at every update.
Dynamo calls it instead, at the cost of one graph break a call, as it does with what
:class:`torch.optim.Optimizer` marks in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

__all__ = ["never_compiled"]

P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Have Dynamo call ``function``, and all that it calls, as it is.

    :func:`torch.compiler.disable` would do so too, but imports Dynamo at once, which takes seconds;
    this waits for the first call, as :mod:`torch.optim` does.
    """
    return _disable_dynamo(function)
