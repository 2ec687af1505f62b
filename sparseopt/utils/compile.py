"""Excludes code that branches on the values of tensors from ``torch.compile``.

A mask update as a graph would break into dozens of graphs, and be compiled again at every update.
So Dynamo calls it as ordinary Python, at the cost of one graph break a call.
:class:`torch.optim.Optimizer` marks its own functions in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

# Otherwise _disable_current_modes imports it, which fails if the garbage collector calls
# outside_of_tracing() while torch is importing it.
import torch._subclasses.schema_check_mode  # noqa: F401
from torch._C import DisableTorchFunction, _len_torch_dispatch_stack
from torch._compile import _disable_dynamo
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["disable_dynamo", "outside_of_tracing"]

P = ParamSpec("P")
R = TypeVar("R")


def disable_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Mark ``function`` so that Dynamo runs it, and all that it calls, without compiling it.

    :func:`torch.compiler.disable` does the same, but imports Dynamo at once, which takes seconds.
    This decorator imports Dynamo on the first call, as :mod:`torch.optim` does.
    """
    return _disable_dynamo(function)


@contextmanager
def outside_of_tracing() -> Iterator[None]:
    """Run the operations in this block for real, even while a graph is being traced.

    The garbage collector may run during tracing, and what it calls must not enter the graph.
    """
    before_dispatch: int = _len_torch_dispatch_stack_pre_dispatch()  # type: ignore[no-untyped-call]
    if _len_torch_dispatch_stack() + before_dispatch == 0:
        yield
        return
    # torch.export also traces functions of torch, such as the switches of gradients.
    with DisableTorchFunction(), _disable_current_modes():
        yield
