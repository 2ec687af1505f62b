"""Builds the sparse layers from an optimizer, a model and the user's arguments."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.distributed.ranks import agree_on_masks, is_distributed
from sparseopt.distributions import Init, layer_named, layers_named, live_counts
from sparseopt.masks.already_sparse import warn_of_lost_weights
from sparseopt.masks.indices import count_true
from sparseopt.masks.initial import initial_masks
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import (
    check_counts,
    normed_dimensions,
    normed_dimensions_of_groups,
)
from sparseopt.masks.selection import Selection, check_selection, select, stacked_matrices
from sparseopt.methods.base import Method
from sparseopt.methods.nm import NM
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.methods.srigl import SRigL
from sparseopt.optimizer.find_weights import (
    find_weights,
    note_computed,
    note_selected_elsewhere,
    note_what_stays_dense,
    refuse_flat_parameters,
    why_nothing,
)
from sparseopt.optimizer.shared_memory import refuse_shared_memory
from sparseopt.structured.channel_layers import channel_layers
from sparseopt.utils.errors import NoSparseLayerError
from sparseopt.utils.validation import whole_number
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = [
    "MaskConfig",
    "build_layers",
    "check_keeps_zeros",
    "check_ranks_step_together",
    "check_wrappable",
    "complete_method",
    "has_names",
    "make_layers",
    "selected_by",
    "weights_for",
]

logger = logging.getLogger("sparseopt")

T = TypeVar("T")


@dataclass(frozen=True)
class MaskConfig:
    """The user's settings: how much of each layer is live, and which weights."""

    density: float
    init: Init
    mask: str | Mapping[str, Tensor]
    sparse: Selection | None = None

    def among(self, names: Mapping[str, object]) -> MaskConfig:
        """Return this configuration without the entries of mappings for layers not in ``names``."""
        init, mask = _among(self.init, names), _among(self.mask, names)
        return MaskConfig(self.density, init, mask, self.sparse)


def check_wrappable(optimizer: object, model: object, sparse: object) -> None:
    """Raise :class:`TypeError` unless these arguments of ``SparseOptimizer`` have usable types."""
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
            "which cover only some rows, and masks need dense gradients. Use Adam."
        )
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise TypeError(
            f"optimizer={type(optimizer).__name__}(..., overlap_with_ddp=True) cannot be wrapped: "
            "it steps inside the hooks of DistributedDataParallel, where nothing can be masked. "
            "Leave overlap_with_ddp out."
        )
    if hasattr(optimizer, "inner") and hasattr(optimizer, "masks"):
        raise TypeError("optimizer is a SparseOptimizer already: wrap the plain optimizer once.")
    refuse_flat_parameters(optimizer, model)
    check_selection(sparse, model)


def complete_method(method: Method, model: nn.Module | None, example_inputs: Any) -> Method:
    """Return the method; one that needs the model's channels gets them, if inputs are given.

    Raises:
        ValueError: if the method names a layer that the model does not have.
    """
    if isinstance(method, SRigL) and model is not None:
        method._check_outputs(dict(unwrapped(model).named_parameters()))
    if isinstance(method, RigLStruct) and model is not None and example_inputs is not None:
        return method._with_groups_of(model, example_inputs)
    return method


def has_names(optimizer: Optimizer, model: nn.Module | None) -> bool:
    """Whether layers have their parameters' names, and not names by position."""
    return model is not None or all("param_names" in group for group in optimizer.param_groups)


def build_layers(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    method: Method,
    generator: torch.Generator,
) -> list[SparseLayer]:
    """Find the weights in ``groups`` that can be sparse, and make masks; change no weight yet.

    Raises:
        NoSparseLayerError: if no weight can be sparse.
        TypeError: if a weight is of a kind that can't be masked.
        ValueError: if a density or a name is wrong, or if a weight is on the meta device or shares
            memory with another parameter.
    """
    weights, overrides = weights_for(method, groups, model, config.sparse)
    if not weights:
        raise NoSparseLayerError(why_nothing(model))
    _check_have_values(weights)
    refuse_shared_memory(weights, groups, model)
    if isinstance(method, RigLStruct):
        return _structured_layers(groups, model, config, method, generator)
    selected = selected_by(config.sparse, model)
    note_what_stays_dense(groups, model, list(weights.values()), selected)
    if model is not None:
        note_selected_elsewhere(groups, model, selected)
        note_computed(model, weights)
    else:
        logger.warning(
            "no model was given, so every trainable parameter of two or more dimensions (of more "
            "than one entry) is made sparse: %s. Pass the model to leave embeddings and the like "
            "dense.",
            ", ".join(weights),
        )
    return make_layers(weights, overrides, config, method, generator, model, groups)


def _check_have_values(weights: Mapping[str, nn.Parameter]) -> None:
    for name, weight in weights.items():
        if weight.is_meta:
            raise ValueError(
                f"weight {name!r} is on the meta device and has no values yet: call "
                "model.to_empty(device=...) and initialise the weights before the optimizer is "
                "made."
            )


def check_keeps_zeros(
    layers: Sequence[SparseLayer], config: MaskConfig, method: Method, *, stacklevel: int = 3
) -> None:
    """Warn, before masks are applied, if they would destroy a model that is sparse already.

    There is no warning for masks that the user gave.

    Args:
        layers: the layers.
        config: the user's settings.
        method: the method.
        stacklevel: the stack level of the warning, counted from this function.
    """
    mask = config.mask
    if mask == "nonzero":
        return
    given = list(mask) if isinstance(mask, Mapping) else []
    warn_of_lost_weights(
        [layer for layer in layers if not any(layer_named(key, [layer.name]) for key in given)],
        keep_zeros="mask='magnitude'" if isinstance(method, RigLStruct) else "mask='nonzero'",
        only_fewer=mask == "magnitude",
        stacklevel=stacklevel,
    )


def check_ranks_step_together(optimizer: Optimizer, method: Method) -> None:
    """Warn if masks move although ranks train independently between averages."""
    if (
        type(optimizer).__name__ == "PostLocalSGDOptimizer"
        and method.moves_masks
        and is_distributed()
    ):
        warnings.warn(
            "PostLocalSGDOptimizer lets every rank train alone between averages. So the masks that "
            f"method={method.name!r} moves would differ from rank to rank, and the average of the "
            "weights would be denser: pass method='static'.",
            UserWarning,
            stacklevel=3,
        )


def weights_for(
    method: Method,
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    sparse: Selection | None,
    *,
    must_match: bool = True,
) -> tuple[dict[str, nn.Parameter], dict[str, float]]:
    """Find the weights that ``method`` can make sparse; see :func:`find_weights`."""
    # The channels of other modules are not known.
    only_known = isinstance(method, RigLStruct)
    return find_weights(groups, model, sparse, only_known=only_known, must_match=must_match)


def selected_by(sparse: Selection | None, model: nn.Module | None) -> dict[nn.Parameter, bool]:
    """Return what ``sparse`` selects in the present model; perhaps nothing."""
    return {} if sparse is None or model is None else select(model, sparse, must_match=False)


def _structured_layers(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    method: RigLStruct,
    generator: torch.Generator,
) -> list[SparseLayer]:
    """Return the layers for a method that drops channels."""
    if model is None:
        raise TypeError(f"method={method.name!r} needs the model: pass it as the second argument.")
    weights, overrides = weights_for(method, groups, model, config.sparse)
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
        kinds=method.kinds,
        density=config.density,
        init=config.init,
        mask=config.mask,
        generator=generator,
    )


def make_layers(
    weights: Mapping[str, nn.Parameter],
    overrides: Mapping[str, float],
    config: MaskConfig,
    method: Method,
    generator: torch.Generator,
    model: nn.Module | None,
    groups: Sequence[Mapping[str, Any]],
) -> list[SparseLayer]:
    """Return layers of ``weights`` with their first masks, which are not applied yet.

    Args:
        weights: the weights by name.
        overrides: densities of some of these weights.
        config: the user's settings.
        method: the method.
        generator: the source of random masks.
        model: the model, if there is one; it shows which weights are stacks of matrices or under
            weight norm.
        groups: the param groups.

    Raises:
        ValueError: if a density is wrong, or too small for weight norm.
    """
    for density in overrides.values():
        if density != 1.0:
            # It raises if the method does not allow this density.
            method.initial_density(density)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    of = {} if model is None else stacked_matrices(model)
    stacks = {name: of[weight] for name, weight in weights.items() if weight in of}
    counts = live_counts(shapes, config.density, config.init, overrides, stacks)
    targets = {name: _live_count(method, shapes[name], live) for name, live in counts.items()}
    live = _live_at_start(shapes, targets, overrides, stacks, config, method)
    if isinstance(method, NM):
        _note_dense(method, shapes, targets)
    normed = normed_dimensions_of_groups(groups) if model is None else normed_dimensions(model)
    dims = {name: normed[weight] for name, weight in weights.items() if weight in normed}
    masks = initial_masks(weights, live, config.mask, generator, method.initial_mask, dims)
    if config.mask != "random":
        masks = agree_on_masks(masks)
    final = {name: _target(masks[name], live[name], targets[name]) for name in weights}
    for name, dim in dims.items():
        check_counts(name, shapes[name], dim, final[name])
    return [
        SparseLayer(name, weight, masks[name], final[name], dims.get(name))
        for name, weight in weights.items()
    ]


def _live_count(method: Method, shape: tuple[int, ...], live: int) -> int:
    """Return the number of live weights that a method wants in a layer.

    Raises:
        TypeError: if the method returns anything else than a whole number.
        ValueError: if the layer has no place for this number.
    """
    returned = f"live_count() of method={method.name!r} returned"
    count = method.live_count(shape, live)
    number = whole_number(f"{returned} {count!r}", count)
    if not 1 <= number <= math.prod(shape):
        raise ValueError(
            f"{returned} {number} for a layer of the shape "
            f"{tuple(shape)}: it must be from 1 to {math.prod(shape)}."
        )
    return number


def _note_dense(
    method: NM, shapes: Mapping[str, tuple[int, ...]], targets: Mapping[str, int]
) -> None:
    dense = [name for name, shape in shapes.items() if targets[name] == math.prod(shape)]
    if dense:
        logger.warning(
            "method=%r keeps these layers dense: %s. Either their second dimension is not a "
            "multiple of m=%d, or init makes them dense (init={} makes no layer dense).",
            method.name,
            ", ".join(f"{name} ({'x'.join(map(str, shapes[name]))})" for name in dense),
            method.m,
        )


def _live_at_start(
    shapes: Mapping[str, tuple[int, ...]],
    targets: Mapping[str, int],
    overrides: Mapping[str, float],
    stacks: Mapping[str, int],
    config: MaskConfig,
    method: Method,
) -> Mapping[str, int]:
    """Return how many weights of each layer are live before the first step.

    If the method starts denser than the target, ``init`` distributes this larger density too.
    Layers with a density of their own start at the larger one of this density and the method's.
    """
    density = method.initial_density(config.density)
    if density == config.density:
        return targets
    if density == 1.0:
        return {name: math.prod(shape) for name, shape in shapes.items()}
    init = config.init
    if isinstance(init, Mapping):
        init = {
            key: choice if isinstance(choice, str) or callable(choice) else max(choice, density)
            for key, choice in init.items()
        }
    start = live_counts(shapes, density, init, dict.fromkeys(overrides, density), stacks)
    return {name: max(start[name], target) for name, target in targets.items()}


def _among(setting: T, names: Mapping[str, object]) -> T | dict[str, Any]:
    if not isinstance(setting, Mapping):
        return setting
    return {key: value for key, value in setting.items() if layers_named(key, names)}


def _target(mask: Tensor, live: int, target: int) -> int:
    """Return the final live count of a layer.

    A given mask with another count keeps this count. But if the method prunes, and the target is
    smaller, the final count is the target.
    """
    chosen = count_true(mask)
    if chosen == live:
        return target
    return chosen if live == target else min(chosen, target)
