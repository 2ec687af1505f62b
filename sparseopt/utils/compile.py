"""Keeping ``torch.compile`` out of code that decides by the values of tensors.

What moves masks can't be a graph: it would break into dozens, and be compiled anew at every update.
Dynamo calls it instead, at the cost of one graph break a call, as it does with what
:class:`torch.optim.Optimizer` marks in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from torch._C import DisableTorchFunction, _len_torch_dispatch_stack
from torch._compile import _disable_dynamo
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["disable_dynamo", "outside_of_tracing"]

P = ParamSpec("P")
R = TypeVar("R")


def disable_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Have Dynamo call ``function``, and all that it calls, as it is.

    :func:`torch.compiler.disable` would do so too, but imports Dynamo at once, which takes seconds;
    this waits for the first call, as :mod:`torch.optim` does.
    """
    return _disable_dynamo(function)


@contextmanager
def outside_of_tracing() -> Iterator[None]:
    """Have operations be done, and not traced, where garbage is collected while a graph is made."""
    before_dispatch: int = _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    if _len_torch_dispatch_stack() + before_dispatch == 0:
        yield
        return
    # torch.export watches functions of torch too, such as those that switch gradients off.
    with DisableTorchFunction(), _disable_current_modes():
        yield
