"""Methods of a user's own, registered, which keep state from step to step."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparseopt import DropGrow, register_method


@register_method
@dataclass(frozen=True)
class SmoothedSalience(DropGrow):
    """Drops the smallest |w g|, smoothed over every step; grows by |g| times a random number."""

    name: ClassVar[str] = "smoothed-salience"
    needs_dense_gradient: ClassVar[bool] = True
    follows_mask: ClassVar[tuple[str, ...]] = ("salience",)

    decay: float = 0.9

    def initial_layer_state(self, layer):
        return {
            "salience": torch.zeros_like(layer.weight),
            "seen": torch.zeros((), dtype=torch.int64),
        }

    def initial_run_state(self):
        return {"updates": 0, "largest": 0.0}

    def observe(self, layer, gradient, update):
        state = update.layer_state(layer)
        salience = (layer.weight * gradient).abs()
        state["salience"].mul_(self.decay).add_(salience, alpha=1 - self.decay)
        state["seen"] += 1

    def moves(self, layers, update):
        update.run_state["updates"] += 1
        update.run_state["largest"] = max(update.run_state["largest"], update.fraction)
        return super().moves(layers, update)

    def drop_scores(self, layer, update):
        return layer.gather(update.layer_state(layer)["salience"])

    def grow_scores(self, layer, update):
        return layer.weight.grad.abs() * update.random_scores(layer)


@register_method
@dataclass(frozen=True)
class FrequentGradient(DropGrow):
    """Grows where the dense gradient was larger than the layer's mean in most steps."""

    name: ClassVar[str] = "frequent-gradient"
    observes_dense_gradient: ClassVar[bool] = True

    def initial_layer_state(self, layer):
        # Random, so that there are no ties, and so that ranks differ without the state of rank 0.
        return {"count": torch.rand(layer.weight.shape) / 2}

    def observe(self, layer, gradient, update):
        state = update.layer_state(layer)
        size = gradient.abs()
        state["count"] = state["count"] + (size > size.mean())

    def grow_scores(self, layer, update):
        return update.layer_state(layer)["count"]
