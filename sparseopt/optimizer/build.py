"""From an optimizer, a model and the user's arguments to sparse layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.distributed.ranks import agree_on_masks
from sparseopt.distributions import Distribution, live_counts
from sparseopt.masks.indices import count_true
from sparseopt.masks.initial import initial_masks
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.prunable import (
    model_weights,
    optimizer_weights,
    refuse_unusable,
)
from sparseopt.methods.base import Method
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.structured.channel_layers import channel_layers
from sparseopt.utils.errors import NoSparseLayerError
from sparseopt.utils.validation import check_density
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "MaskConfig",
    "add_in_order",
    "build_layers",
    "check_wrappable",
    "has_names",
    "layers_of_new_group",
]

logger = logging.getLogger("sparseopt")

T = TypeVar("T")


@dataclass(frozen=True)
class MaskConfig:
    """What the user asked for: how much of each layer is live, and which weights."""

    density: float
    init: str | Mapping[str, float] | Distribution
    mask: str | Mapping[str, Tensor]

    def among(self, names: Mapping[str, object]) -> MaskConfig:
        """Return this configuration without what mappings say of other layers than ``names``."""
        return MaskConfig(self.density, _among(self.init, names), _among(self.mask, names))


def check_wrappable(optimizer: object, model: object) -> None:
    """Raise :class:`TypeError` unless ``optimizer`` can be wrapped, and ``model`` is a module."""
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model={model!r} must be the torch.nn.Module whose parameters the optimizer trains, "
            "or None."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} must be a torch.optim.Optimizer, already constructed."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TypeError(
            "optimizer=SparseAdam(...) cannot be wrapped: it takes gradients with sparse layout, "
            "which cover only some rows, and masks need dense ones. Use Adam."
        )
    if hasattr(optimizer, "inner") and hasattr(optimizer, "masks"):
        raise TypeError("optimizer is a SparseOptimizer already: wrap the plain optimizer once.")


def has_names(optimizer: Optimizer, model: nn.Module | None) -> bool:
    """Whether layers are called by their parameters' names, not by position."""
    return model is not None or all("param_names" in group for group in optimizer.param_groups)


def build_layers(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    method: Method,
    generator: torch.Generator,
) -> list[SparseLayer]:
    """Find what can be sparse in ``groups`` and give it masks; weights are not touched yet.

    Raises:
        NoSparseLayerError: if nothing can be sparse.
        TypeError: if a weight is of a kind that can't be masked.
        ValueError: if a density or a name is wrong.
    """
    weights, overrides = _sparse_weights(groups, model)
    if not weights:
        raise NoSparseLayerError(_why_nothing(model))
    if isinstance(method, RigLStruct):
        return _structured_layers(groups, model, config, method, generator)
    if model is None:
        logger.warning(
            "no model was given, so every trainable parameter of two or more dimensions is made "
            "sparse: %s. Pass the model to leave embeddings and the like dense.",
            ", ".join(weights),
        )
    return _make_layers(weights, overrides, config, method, generator)


def layers_of_new_group(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    method: Method,
    generator: torch.Generator,
    *,
    known: Collection[str],
) -> list[SparseLayer]:
    """Return the layers of the last of ``groups``, which is new: by the same rules, perhaps none.

    The group's layers share the density among themselves; none is "the first, so dense".

    Args:
        groups: all param groups.
        model: the model, if the optimizer was made with one.
        config: what the user asked for at construction.
        method: the method.
        generator: the source of random masks.
        known: names of the layers that there are already.

    Raises:
        ValueError: if a weight has the name of another that is sparse already, or the method can
            have no more layers.
    """
    everything, overrides = _sparse_weights(groups, model)
    added = set(groups[-1]["params"])
    weights = {name: weight for name, weight in everything.items() if weight in added}
    if not weights:
        return []
    if isinstance(method, RigLStruct):
        raise ValueError(
            f"method={method.name!r} knows the model's channels from construction, and can't take "
            f"{next(iter(weights))!r} of the new param group: give the group density=False, or "
            "make the SparseOptimizer when all groups are there."
        )
    for name in weights:
        if name in known:
            raise ValueError(
                f"parameter {name!r} of the new param group has the name of a sparse layer that "
                "this optimizer has already: a weight that takes another's place in the model "
                "needs a new SparseOptimizer."
            )
    densities = {name: overrides.get(name, config.density) for name in weights}
    return _make_layers(weights, densities, config.among(weights), method, generator)


def add_in_order(
    layers: list[SparseLayer], more: Sequence[SparseLayer], model: nn.Module | None
) -> None:
    """Extend ``layers``, which are in the order of the model if there is one, and stay so."""
    layers.extend(more)
    if model is not None:
        order = {name: place for place, name in enumerate(model_weights(model).values())}
        layers.sort(key=lambda layer: order.get(layer.name, len(order)))


def _structured_layers(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    method: RigLStruct,
    generator: torch.Generator,
) -> list[SparseLayer]:
    """Return the layers of a method that drops whole channels."""
    if model is None:
        raise TypeError(f"method={method.name!r} needs the model: pass it as the second argument.")
    weights, overrides = _sparse_weights(groups, model)
    free = {p for group in groups if group.get("density") is not False for p in group["params"]}
    trained = {
        canonical_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter in free and parameter.requires_grad
    }
    return channel_layers(
        method.groups,
        weights,
        trained,
        overrides,
        density=config.density,
        init=config.init,
        mask=config.mask,
        generator=generator,
    )


def _make_layers(
    weights: Mapping[str, nn.Parameter],
    overrides: Mapping[str, float],
    config: MaskConfig,
    method: Method,
    generator: torch.Generator,
) -> list[SparseLayer]:
    for density in overrides.values():
        if density != 1.0:
            # A method that can have one density only says so.
            method.initial_density(density)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    targets = {
        name: method.live_count(shapes[name], live)
        for name, live in live_counts(shapes, config.density, config.init, overrides).items()
    }
    live = _live_at_start(shapes, targets, overrides, config, method)
    masks = initial_masks(weights, live, config.mask, generator, method.initial_mask)
    if config.mask != "random":
        masks = agree_on_masks(masks)
    return [
        SparseLayer(name, weight, masks[name], _target(masks[name], live[name], targets[name]))
        for name, weight in weights.items()
    ]


def _live_at_start(
    shapes: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, int],
    overrides: Mapping[str, float],
    config: MaskConfig,
    method: Method,
) -> Mapping[str, int]:
    """Return how many weights of each layer are live before the first step.

    A method that starts denser has its own density distributed as the target is. Layers that were
    given a density start at the method's, or at theirs if that is larger.
    """
    density = method.initial_density(config.density)
    if density == config.density:
        return targets
    if density == 1.0:
        return {name: math.prod(shape) for name, shape in shapes.items()}
    init: Any = {} if isinstance(config.init, Mapping) else config.init
    start = live_counts(shapes, density, init, dict.fromkeys(overrides, density))
    return {name: max(start[name], target) for name, target in targets.items()}


def _among(wish: T, names: Mapping[str, object]) -> T | dict[str, Any]:
    if not isinstance(wish, Mapping):
        return wish
    return {key: value for key, value in wish.items() if key in names or f"{key}.weight" in names}


def _target(mask: Tensor, live: int, target: int) -> int:
    """Return the final live count: a mask that brings its own count keeps it, or is pruned."""
    chosen = count_true(mask)
    if chosen == live:
        return target
    return chosen if live == target else min(chosen, target)


def _sparse_weights(
    groups: list[dict[str, Any]], model: nn.Module | None
) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    candidates = optimizer_weights(groups) if model is None else model_weights(model)
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    weights: dict[str, nn.Parameter] = {}
    overrides: dict[str, float] = {}
    for parameter, name in candidates.items():
        group = group_of.get(parameter)
        if group is None or not parameter.requires_grad or group.get("density") is False:
            continue
        refuse_unusable(name, parameter)
        weights[name] = parameter
        if group.get("density") is not None:
            overrides[name] = check_density("density of a param group", group["density"])
    return weights, overrides


def _why_nothing(model: nn.Module | None) -> str:
    if model is None:
        return (
            "no parameter of the optimizer can be sparse: none is trainable, of two or more "
            "dimensions, and in a param group without density=False."
        )
    return (
        f"no parameter of the optimizer is a trainable weight of a convolution or linear layer of "
        f"model={type(model).__name__}(...) in a param group without density=False. Was the "
        "optimizer made from this model's parameters?"
    )
