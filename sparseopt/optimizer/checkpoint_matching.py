"""Matches the layers of a checkpoint with an optimizer's, and says what differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import described, slices_without
from sparseopt.methods.state import MethodState
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.utils.errors import CheckpointError
from sparseopt.utils.wrappers import canonical_name

__all__ = ["SavedLayer", "check_kind", "check_method_state", "match_layers", "parameter_indices"]


@dataclass(frozen=True)
class SavedLayer:
    """The values of one layer in a checkpoint.

    ``mask`` is ``None`` if every weight was live. ``memory`` is ``None`` if the method accumulated
    no gradients. ``state`` is the method's state of the layer, by name.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    target: int
    last_dropped: int
    last_grown: int
    mask: Tensor | None
    ever_live_bits: Tensor | None
    memory: Tensor | None
    state: Mapping[str, Tensor]


def check_kind(theirs: str, optimizer: str, group: Mapping[str, Any], updater: MaskUpdater) -> None:
    """Check that a checkpoint is of this method and of a similar inner optimizer.

    A checkpoint of another class of optimizer passes if its param groups have all settings of this
    one, as with Adam and AdamW.

    Args:
        theirs: the method's name in the checkpoint.
        optimizer: the class of the inner optimizer in the checkpoint.
        group: the first param group in the checkpoint.
        updater: the mask updater, with the method and the inner optimizer.
    """
    method, inner = updater.method, updater.backend.inner
    if theirs != method.name:
        raise CheckpointError(
            f"the checkpoint is of method {theirs!r}, but this optimizer has "
            f"method={method.name!r}: make the optimizer with the checkpoint's method."
        )
    mine = type(inner).__name__
    settings = set(inner.param_groups[0]) - set(group)
    if optimizer != mine and settings:
        raise CheckpointError(
            f"the checkpoint is of the inner optimizer {optimizer}, but this inner optimizer is "
            f"{mine}, and the checkpoint lacks its setting {sorted(settings)[0]!r}."
        )


def check_method_state(
    pairs: Sequence[tuple[SparseLayer, SavedLayer]],
    run_state: Collection[str],
    method_state: MethodState,
) -> None:
    """Check that a checkpoint has the state that the method keeps, by names and shapes.

    Args:
        pairs: each layer with its values in the checkpoint.
        run_state: the names of the state of the run in the checkpoint.
        method_state: the state that the method keeps here.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    for layer, was in pairs:
        if was.target == layer.numel:
            continue
        here = {name: tuple(value.shape) for name, value in method_state.initial(layer).items()}
        there = {name: tuple(value.shape) for name, value in was.state.items()}
        if here != there:
            raise CheckpointError(
                f"the method keeps {_described(here)} for layer {layer.name!r}, but the checkpoint "
                f"has {_described(there)}: another version of the method saved it, or the method "
                "had other settings."
            )
    run_here, run_there = set(method_state.run), set(run_state)
    if run_here != run_there:
        raise CheckpointError(
            f"the method keeps {_described(run_here)} for the run, but the checkpoint has "
            f"{_described(run_there)}: another version of the method saved it, or the method had "
            "other settings."
        )


def match_layers(
    saved: Sequence[SavedLayer],
    groups: Sequence[Mapping[str, Any]],
    updater: MaskUpdater,
    model: nn.Module | None,
    *,
    named: bool,
) -> list[tuple[SparseLayer, SavedLayer]]:
    """Pair each layer with its values in the checkpoint.

    They are matched by name, without the prefixes of wrappers, if both sides have names; otherwise
    by the index of their parameter. The order of the layers may differ: with a model it is the
    order of the modules, and without a model the order of the param groups.

    Args:
        saved: the layers of the checkpoint.
        groups: the param groups of the checkpoint.
        updater: the mask updater, with the optimizer's layers.
        model: the model, if the optimizer was made with one; for messages.
        named: whether both sides have names.
    """
    layers = updater.layers
    indices = parameter_indices(updater.backend.inner, layers)
    if named:
        by_name = {canonical_name(layer.name): layer for layer in saved}
        _check_same_layers([layer.name for layer in layers], list(by_name), updater, model)
        pairs = [(layer, by_name[layer.name]) for layer in layers]
    else:
        ours = sorted(layers, key=lambda layer: indices[layer.weight])
        theirs = sorted(saved, key=lambda was: was.index)
        if len(theirs) != len(ours):
            raise CheckpointError(
                f"the checkpoint has {len(theirs)} sparse layers, but this optimizer has "
                f"{len(ours)} ({_first_difference(theirs, ours)})."
            )
        pairs = list(zip(ours, theirs, strict=True))
    _check_groups(groups, updater.backend.inner)
    for layer, was in pairs:
        if was.shape != tuple(layer.weight.shape):
            raise CheckpointError(
                f"layer {layer.name!r} has shape {tuple(layer.weight.shape)}, but it has shape "
                f"{was.shape} in the checkpoint."
            )
        if was.index != indices[layer.weight]:
            raise CheckpointError(
                f"layer {layer.name!r} is parameter {indices[layer.weight]} of the optimizer, but "
                f"was parameter {was.index} in the checkpoint: give the optimizer its parameters "
                "in the same order."
            )
        _check_mask(layer, was)
        _check_slices(layer, was)
    return pairs


def _check_mask(layer: SparseLayer, was: SavedLayer) -> None:
    """Check that a layer has a mask exactly if it is sparse in the checkpoint.

    Distributed checkpointing loads only keys that the new optimizer has, and a dense layer has no
    mask. It also leaves the new optimizer's mask where the checkpoint has none.
    """
    is_dense = was.target == layer.numel
    if was.mask is None and not is_dense:
        raise CheckpointError(
            f"the checkpoint's mask of layer {layer.name!r} was not loaded: the layer has "
            f"{was.target} of {layer.numel} weights there, but is dense in this optimizer, so "
            "torch.distributed.checkpoint did not look for a mask. Make the optimizer with the "
            "density= and init= of the checkpoint."
        )
    if was.mask is None:
        return
    if tuple(was.mask.shape) != tuple(layer.weight.shape):
        raise CheckpointError(
            f"the checkpoint's mask of layer {layer.name!r} has shape {tuple(was.mask.shape)}, but "
            f"the weight has shape {tuple(layer.weight.shape)}."
        )
    if is_dense and not bool(full_tensor(was.mask).all()):
        raise CheckpointError(
            f"layer {layer.name!r} is dense in the checkpoint, but has a mask that drops weights: "
            "torch.distributed.checkpoint left this optimizer's mask there. Make the optimizer "
            "with the density= and init= of the checkpoint."
        )


def _check_slices(layer: SparseLayer, was: SavedLayer) -> None:
    """Check that a mask has a live weight in every slice that weight norm divides by its norm."""
    if layer.norm_dim is None or was.mask is None:
        return
    if empty := slices_without(full_tensor(was.mask), layer.norm_dim):
        raise CheckpointError(
            f"the checkpoint's mask of layer {layer.name!r} has no live weight in "
            f"{described(empty, layer.norm_dim)}, but weight norm divides each slice by its norm, "
            "and that would be 0 / 0."
        )


def _check_groups(groups: Sequence[Mapping[str, Any]], inner: Optimizer) -> None:
    """Check that the param groups of a checkpoint have as many parameters as this optimizer's."""
    there = [len(group["params"]) for group in groups]
    here = [len(group["params"]) for group in inner.param_groups]
    if there != here:
        raise CheckpointError(
            f"the checkpoint has {len(there)} param groups, with {_listed(there)} parameters, but "
            f"this optimizer has {len(here)}, with {_listed(here)}: give the optimizer its "
            "parameters in the same groups."
        )


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) or "no"


def _check_same_layers(
    here: list[str], there: list[str], updater: MaskUpdater, model: nn.Module | None
) -> None:
    """Check that the checkpoint has the optimizer's layers, by name, and no other layers."""
    missing = [name for name in here if name not in there]
    if missing:
        raise CheckpointError(
            f"the checkpoint has no sparse layer {missing[0]!r} ({len(missing)} of this "
            f"optimizer's {len(here)} are missing): it is of another model, or of other layers."
        )
    surplus = [name for name in there if name not in here]
    if surplus:
        raise CheckpointError(
            f"the checkpoint has a sparse layer {surplus[0]!r} that this optimizer does not have "
            f"({len(surplus)} such layers): {_why_dense(surplus[0], updater, model)}"
        )


def _why_dense(name: str, updater: MaskUpdater, model: nn.Module | None) -> str:
    """Return why the parameter called ``name`` is not a sparse layer here, and what to do."""
    groups = updater.backend.inner.param_groups
    named: list[tuple[str, Tensor]] = [
        pair
        for group in groups
        for pair in zip(group.get("param_names", ()), group["params"], strict=False)
    ]
    if model is not None:
        named += model.named_parameters()
    parameter = {canonical_name(key): found for key, found in named}.get(name)
    if parameter is None:
        return "it is of another model, or of other layers."
    if not parameter.requires_grad:
        return (
            "the parameter is frozen here (requires_grad=False). Freeze it after the optimizer is "
            "made."
        )
    if any(group.get("density") is False and _has(group, parameter) for group in groups):
        return "the parameter is in a param group with density=False here. Remove density=False."
    return "it is of other layers: make the optimizer with the checkpoint's sparse= and groups."


def _has(group: Mapping[str, Any], parameter: Tensor) -> bool:
    return any(parameter is other for other in group["params"])


def _described(kept: Collection[str] | Mapping[str, tuple[int, ...]]) -> str:
    if isinstance(kept, Mapping):
        return ", ".join(f"{name!r} of shape {shape}" for name, shape in kept.items()) or "nothing"
    return ", ".join(map(repr, sorted(kept))) or "nothing"


def _first_difference(saved: Sequence[SavedLayer], layers: Sequence[SparseLayer]) -> str:
    for was, layer in zip(saved, layers, strict=False):
        if was.shape != tuple(layer.weight.shape):
            return f"first difference: {was.name!r} {was.shape} there, {layer!r} here"
    return "the first ones agree"


def parameter_indices(inner: Optimizer, layers: Sequence[SparseLayer]) -> dict[Tensor, int]:
    """Return each parameter's key in the state dict: its index, counted through all groups."""
    parameters = (parameter for group in inner.param_groups for parameter in group["params"])
    indices: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(parameters)}
    for layer in layers:
        if layer.weight not in indices:
            raise RuntimeError(
                f"the weight of sparse layer {layer.name!r} is no longer in any of the optimizer's "
                "param_groups: call detach(), and wrap the optimizer again."
            )
    return indices
