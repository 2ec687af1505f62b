"""A plain torch optimizer on a plain model, made sparse by hand with the oracle's masks."""

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
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, oracle: Any):
        self.model, self.optimizer, self.oracle = model, optimizer, oracle
        self.params = dict(model.named_parameters())
        self.t = 0
        self._mask_weights_and_state()

    def step(self, index: int | None = None) -> None:
        """One call of `step()` on batch `index` (by default the number of the step)."""
        self.t += 1
        self.optimizer.zero_grad()
        loss_of(self.model, self.t if index is None else index).backward()
        if self.oracle.is_update(self.t):
            self._update()
        else:
            self._ordinary_step()

    def _update(self) -> None:
        weights = {name: logical(self.params[name]) for name in self.oracle.masks}
        gradients = {name: logical(self.params[name].grad) for name in self.oracle.masks}
        for name, update in self.oracle.update(self.t, weights, gradients).items():
            self._reset(name, update.reset)

    def _ordinary_step(self) -> None:
        dense = {name: logical(self.params[name].grad) for name in self.oracle.masks}
        self.oracle.observe(self.t, dense)
        for name, mask in self.oracle.masks.items():
            gradient = self.params[name].grad
            _fill(gradient, ~mask, 0.0)
        self.optimizer.step()
        self._mask_weights_and_state()

    def _mask_weights_and_state(self) -> None:
        for name, mask in self.oracle.masks.items():
            self._reset(name, ~mask)

    def _reset(self, name: str, where: np.ndarray) -> None:
        parameter = self.params[name]
        _fill(parameter, where, 0.0)
        for key, value in self.optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                _fill(value, where, fresh_value(self.optimizer, key))


@torch.no_grad()
def _fill(tensor: torch.Tensor, where: np.ndarray, value: float) -> None:
    positions = torch.from_numpy(where).reshape(tensor.shape).to(tensor.device)
    tensor.copy_(torch.where(positions, torch.full_like(tensor, value), tensor))
