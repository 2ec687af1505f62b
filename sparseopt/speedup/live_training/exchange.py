"""Exchanges the classes of a model's modules by a plan, and restores them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.gradients import GradientFlag
from sparseopt.speedup.live_training.concatenation import ConcatenatingModules
from sparseopt.speedup.live_training.layer_state import LayerState
from sparseopt.speedup.live_training.modules import LIVE_CLASSES, exchange, put_back
from sparseopt.speedup.live_training.plan import DENSE, Plan, choices_of
from sparseopt.speedup.live_training.possible import exchangeable_layers

__all__ = ["ModelExchange"]


class ModelExchange:
    """The modules of a model, some of which may be exchanged.

    Args:
        model: the model, with no module exchanged.
        layers: the sparse layers, by name of the module.
        flag: whether ``backward()`` leaves gradients dense now.

    Attributes:
        model: the model.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, SparseLayer], flag: GradientFlag
    ) -> None:
        self.model = model
        self._modules = exchangeable_layers(model)
        self._layers = layers
        self._flag = flag
        self._states: dict[str, LayerState] = {}
        self._between = [
            module
            for module in model.modules()
            if type(module) in LIVE_CLASSES and type(module) not in {nn.Conv2d, nn.Linear}
        ]
        self._concatenating = ConcatenatingModules(model)
        self._exchanged: dict[str, nn.Module] = {}
        self._is_between_exchanged = False

    def apply(self, plan: Plan) -> None:
        """Exchange the modules of a plan, and restore modules that it leaves dense."""
        wanted = {
            name: choices_of(choices)
            for name, choices in plan.items()
            if any(chosen != DENSE for chosen in choices.values())
        }
        for name in [name for name in self._exchanged if name not in wanted]:
            put_back(self._exchanged.pop(name))
        has_maps = False
        for name, choices in wanted.items():
            module = self._modules[name]
            has_maps = has_maps or isinstance(module, nn.Conv2d)
            state = self._state(name)
            state.choices = choices
            if name not in self._exchanged:
                exchange(module, state)
                self._exchanged[name] = module
        self._exchange_between(has_maps)

    def continue_pass(self) -> None:
        """Run the rest of the model's forward pass, in which a plan was applied, by this plan."""
        self._concatenating.enter(self.model)

    def end(self) -> None:
        """Restore all modules."""
        self.apply({})

    def refresh(self) -> None:
        """Make the lists of live weights again where masks have changed."""
        for name in self._exchanged:
            if self._states[name].uses_lists:
                self._states[name].refresh()

    def states(self) -> dict[SparseLayer, LayerState]:
        """Return the state of each sparse layer that is exchanged."""
        return {
            self._layers[name]: self._states[name]
            for name in self._exchanged
            if name in self._layers
        }

    def _state(self, name: str) -> LayerState:
        if name not in self._states:
            module, layer = self._modules[name], self._layers.get(name)
            self._states[name] = LayerState(module, layer, self._flag)
        return self._states[name]

    def _exchange_between(self, wanted: bool) -> None:
        """Exchange or restore the modules between convolutions, such as normalisations."""
        if wanted == self._is_between_exchanged:
            return
        for module in self._between:
            if wanted:
                exchange(module, None)
            else:
                put_back(module)
        if wanted:
            self._concatenating.exchange()
        else:
            self._concatenating.put_back()
        self._is_between_exchanged = wanted
