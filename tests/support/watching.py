"""Seeing a model as another thread sees it: between any two operations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class AfterEveryOperation(TorchDispatchMode):
    """Calls a function after every operation of torch."""

    def __init__(self, function: Callable[[], Any]):
        super().__init__()
        self.function = function
        self._is_busy = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not self._is_busy:
            self._is_busy = True
            try:
                self.function()
            finally:
                self._is_busy = False
        return result


class Sightings:
    """The values that the parameters of a model had during a call, operation by operation.

    Attributes:
        before: the values before the call, by parameter name.
        between: all values that were seen during the call.
        after: the values after it.
    """

    def __init__(self, model: nn.Module, call: Callable[[], Any]):
        self.model = model
        self.before = self._values()
        self.between: dict[str, list[torch.Tensor]] = {
            name: [value] for name, value in self.before.items()
        }
        with AfterEveryOperation(self._look):
            call()
        self.after = self._values()

    def _values(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def _look(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.equal(parameter, self.between[name][-1]):
                self.between[name].append(parameter.detach().clone())
