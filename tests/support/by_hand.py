"""A plain torch optimizer on a plain model, made sparse by hand with the oracle's masks."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from tests.support.catalogue import fresh_value
from tests.support.looking import logical
from tests.support.nets import loss_of


class HandMasked:
    """The dense reference: gradients from its own backward, masks from the oracle.

    Args:
        model: A plain model, with the same initial weights as the run it is compared to.
        optimizer: A plain optimizer of the same kind.
        oracle: Says when masks move and how; its masks are put on the model at once.
        fresh: What the state of a brand-new parameter is filled with, by key, where it isn't 0 and
            the optimizer isn't torch's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        oracle: Any,
        *,
        fresh: Mapping[str, float] | None = None,
    ):
        self.model, self.optimizer, self.oracle = model, optimizer, oracle
        self.fresh = fresh or {}
        self.params = dict(model.named_parameters())
        self.t = 0
        self._mask_weights_and_state()

    def step(self, index: int | None = None) -> None:
        """One call of `step()` on batch `index` (by default the number of the step)."""
        self.optimizer.zero_grad()
        loss_of(self.model, self.t + 1 if index is None else index).backward()
        self.apply()

    def apply(self, max_norm: float | None = None) -> torch.Tensor | None:
        """One call of `step()` with the present gradients, clipped if `max_norm` is given.

        Returns the norm before clipping, which counts only live weights on ordinary steps.
        """
        self.t += 1
        updating = self.oracle.is_update(self.t)
        if not updating:
            self._mask_gradients()
        norm = max_norm and nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        if updating:
            self._update()
        else:
            self.optimizer.step()
            self._mask_weights_and_state()
        return norm

    def _update(self) -> None:
        weights = {name: logical(self.params[name]) for name in self.oracle.masks}
        gradients = {name: logical(self.params[name].grad) for name in self.oracle.masks}
        for name, update in self.oracle.update(self.t, weights, gradients).items():
            self._reset(name, update.reset)

    def _mask_gradients(self) -> None:
        dense = {name: logical(self.params[name].grad) for name in self.oracle.masks}
        self.oracle.observe(self.t, dense)
        for name, mask in self.oracle.masks.items():
            gradient = self.params[name].grad
            _fill(gradient, ~mask, 0.0)

    def _mask_weights_and_state(self) -> None:
        for name, mask in self.oracle.masks.items():
            self._reset(name, ~mask)

    def _reset(self, name: str, where: np.ndarray) -> None:
        parameter = self.params[name]
        _fill(parameter, where, 0.0)
        for key, value in self.optimizer.state.get(parameter, {}).items():
            for tensor in _tensors(value):
                if tensor.shape == parameter.shape and tensor.dtype != torch.bool:
                    _fill(tensor, where, self.fresh.get(key, fresh_value(self.optimizer, key)))


class HandMaskedByClosure(HandMasked):
    """The same for LBFGS and others that evaluate the model inside their own step.

    Whatever they did to the weights before, the model is sparse when it is evaluated, and so are
    its gradients. What LBFGS remembers is of the old masks, and goes when they move.
    """

    def step(self, index: int | None = None) -> None:
        """One call of `step()`; see `HandMasked`."""
        self.t += 1
        updating = self.oracle.is_update(self.t)

        def closure() -> torch.Tensor:
            for name, mask in self.oracle.masks.items():
                _fill(self.params[name], ~mask, 0.0)
            self.optimizer.zero_grad()
            with torch.enable_grad():
                loss = loss_of(self.model, self.t if index is None else index)
            loss.backward()
            if not updating:
                self._mask_gradients()
            return loss

        if updating:
            closure()
            self._update()
            if isinstance(self.optimizer, torch.optim.LBFGS):
                self.optimizer.state.clear()
        else:
            self.optimizer.step(closure)
            self._mask_weights_and_state()


def _tensors(value: Any) -> list[torch.Tensor]:
    """A tensor of the state, or those in a container."""
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, deque)):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return []


@torch.no_grad()
def _fill(tensor: torch.Tensor, where: np.ndarray, value: float) -> None:
    positions = torch.from_numpy(where).reshape(tensor.shape).to(tensor.device)
    tensor.copy_(torch.where(positions, torch.full_like(tensor, value), tensor))
