"""Writes masks and progress into an ordinary optimizer state dict, and reads them.

A mask is a bool tensor in its parameter's ``state`` entry, beside one bit per weight for "was ever
live". Everything else is one dictionary in the first param group. Four rules follow from
distributed checkpointing. It keeps only ``state`` and ``param_groups``, so nothing is added at the
top level. It loads only the keys that a new optimizer has, so keys never depend on the step. It
splits dictionaries, lists and tuples into their items, so a value that grows is one string. It
expects all tensors on one device, so the state of the random generator, which is on the CPU, is a
string too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.checkpoint_matching import (
    SavedLayer,
    check_kind,
    check_method_state,
    match_layers,
    parameter_indices,
)
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.progress import Progress
from sparseopt.optimizer.saved_text import from_text, to_text
from sparseopt.optimizer.state import StateBackend
from sparseopt.utils.errors import CheckpointError

__all__ = [
    "SavedState",
    "attach",
    "extract",
    "only_makes_state",
    "restore",
    "warn_of_other_settings",
    "without_masks",
]

PROGRESS_KEY: Final = "sparseopt"
MASK_KEY: Final = "sparse_mask"
EVER_LIVE_KEY: Final = "sparse_ever_live"
MEMORY_KEY: Final = "sparse_memory"
#: The key of a method's layer state is this prefix and the name of the state.
STATE_PREFIX: Final = "sparse_state."
#: The key of an entry for a parameter without state of its own.
PLACEHOLDER_KEY: Final = "sparse_placeholder"
#: The values that are written as text. Earlier checkpoints have tuples, a dictionary and a tensor.
AS_TEXT: Final = frozenset({"generator", "history", "usage", "fresh", "run_state", "layers"})
#: Two densities are equal if their relative difference is at most this.
SAME_DENSITY: Final = 0.01
#: The errors of values that are missing or of another kind.
UNREADABLE: Final = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class SavedState:
    """The two parts of a state dict: one for the inner optimizer, and one for this library.

    Attributes:
        inner: the state dict for the inner optimizer.
        layers: each layer of the optimizer with its values in the checkpoint.
        progress: schedule, steps, history, costs and random state.
        live_only: whether the state of layers has one value a live weight.
        fresh: initial values of state that were observed, by layer and name of the state.
        run_state: the method's state of the run, pairs of name and value.
    """

    inner: dict[str, Any]
    layers: list[tuple[SparseLayer, SavedLayer]]
    progress: Progress
    live_only: bool
    fresh: dict[tuple[str, str], float]
    run_state: Sequence[tuple[str, Any]]


def attach(updater: MaskUpdater, *, named: bool, live_only: bool) -> dict[str, Any]:
    """Return the inner optimizer's state dict with masks and progress added.

    Args:
        updater: the mask updater, with the layers, their state, the method and the progress.
        named: whether the layers have names of their own.
        live_only: whether the state of layers has one value a live weight now.

    Raises:
        RuntimeError: if a layer's weight is no longer in any param group.
    """
    inner, memory = updater.backend.inner, updater.memory
    indices = parameter_indices(inner, updater.layers)
    state_dict = inner.state_dict()
    state = dict(state_dict["state"])
    entries = []
    for layer in updater.layers:
        index = indices[layer.weight]
        entries.append(
            {
                "name": layer.name,
                "index": index,
                "shape": list(layer.weight.shape),
                "target": layer.target,
                "last_dropped": layer.last_dropped,
                "last_grown": layer.last_grown,
            }
        )
        if not (layer.is_full and layer.is_dense):
            # Copies, because distributed checkpointing writes into these tensors when it loads.
            state[index] = {
                **state.get(index, {}),
                MASK_KEY: layer.mask,
                EVER_LIVE_KEY: layer._ever_live_bits.clone(),
            }
        if memory is not None and not layer.is_dense:
            state[index] = {**state.get(index, {}), MEMORY_KEY: memory.saved(layer)}
        kept = {} if layer.is_dense else updater.state.saved(layer)
        if kept:
            named_kept = {STATE_PREFIX + name: tensor for name, tensor in kept.items()}
            state[index] = {**state.get(index, {}), **named_kept}
    if not all(layer.is_full and layer.is_dense for layer in updater.layers):
        _add_placeholders(state, inner)
    groups = [dict(group) for group in state_dict["param_groups"]]
    ours = {
        "method": updater.method.name,
        "optimizer": type(inner).__name__,
        "state": "live" if live_only else "masked",
        **updater.progress.as_dict(),
        "named": named,
        "fresh": tuple((*key, value) for key, value in updater.backend.noted.items()),
        "run_state": updater.state.saved_run(),
        "layers": tuple(entries),
    }
    groups[0][PROGRESS_KEY] = {
        key: to_text(value) if key in AS_TEXT else value for key, value in ours.items()
    }
    return {**state_dict, "state": state, "param_groups": groups}


def without_masks(backend: StateBackend) -> dict[str, Any]:
    """Return a state dict that a plain optimizer loads, with tensors of its own; nothing changes.

    Raises:
        RuntimeError: if a layer's weight is no longer in any param group.
    """
    inner = backend.inner
    indices = parameter_indices(inner, backend.layers)
    state_dict = inner.state_dict()
    dense = {
        indices[layer.weight]: backend.dense_entry(layer)
        for layer in backend.layers
        if layer.weight in inner.state
    }
    # An optimizer that loads a state dict uses its tensors, and writes to them.
    state = tree_map_only(Tensor, Tensor.clone, {**state_dict["state"], **dense})
    return {**state_dict, "state": state}


def extract(
    state_dict: Mapping[str, Any], updater: MaskUpdater, model: nn.Module | None, *, named: bool
) -> SavedState:
    """Split a state dict into its two parts, if it fits this optimizer; nothing changes.

    Args:
        state_dict: the state dict.
        updater: the mask updater, with the layers to restore, the method and the inner optimizer.
        model: the model, if the optimizer was made with one; for messages.
        named: whether the layers have names of their own.

    Raises:
        CheckpointError: if the state dict has no masks, if it is of another method or of an inner
            optimizer whose state does not fit, if the layers or their shapes differ, or if a
            parameter has another position in the param groups.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    ours = groups[0].pop(PROGRESS_KEY, None) if groups else None
    if ours is None:
        raise CheckpointError(
            "the state dict has no masks. If a plain optimizer saved it, load it into the plain "
            "optimizer before you wrap it; new masks are then made. If it was saved with "
            "StateDictOptions(flatten_optimizer_state_dict=True), only the state of a plain "
            "optimizer was kept: save and load it without flattening."
        )
    state = _without_placeholders(state_dict["state"])
    # The keys are numbers, or names if distributed checkpointing has replaced the numbers.
    keys = [key for group in groups for key in group["params"]]
    try:
        ours = _read(ours, updater.layers[0].weight.device)
        layers = [_pop_layer(entry, state, keys) for entry in ours["layers"]]
        progress = Progress.from_dict(ours)
        live_only, saved_with_names = _has_live_state(ours), bool(ours["named"])
        method, optimizer = ours["method"], ours["optimizer"]
        fresh = {(layer, name): float(value) for layer, name, value in ours["fresh"]}
        run_state = [(name, value) for name, value in ours["run_state"]]
    except UNREADABLE as error:
        raise CheckpointError(
            f"param_groups[0][{PROGRESS_KEY!r}] of the state dict can't be read "
            f"({type(error).__name__}: {error}): it is not complete, or another version wrote it."
        ) from error
    check_kind(method, optimizer, groups[0], updater)
    pairs = match_layers(layers, groups, updater, model, named=named and saved_with_names)
    check_method_state(pairs, dict(run_state), updater.state)
    names = {was.name: layer.name for layer, was in pairs}
    return SavedState(
        {**state_dict, "state": state, "param_groups": groups},
        pairs,
        progress.renamed(names),
        live_only,
        {(names.get(layer, layer), name): value for (layer, name), value in fresh.items()},
        run_state,
    )


def warn_of_other_settings(
    saved: SavedState, updater: MaskUpdater, *, mask: str | Mapping[str, Tensor]
) -> None:
    """Warn if the optimizer was made with another density or schedule than the checkpoint's.

    Call it before anything is loaded: where warnings are errors, it raises.

    Args:
        saved: the result of :func:`extract`.
        updater: the mask updater that :func:`extract` was given.
        mask: the ``mask=`` that the optimizer was made with.
    """
    _warn_of_another_density(saved.layers, mask)
    updater.progress.warn_of_another_schedule(saved.progress)


def restore(saved: SavedState, updater: MaskUpdater) -> None:
    """Set layers and progress from a checkpoint, after the inner optimizer has loaded its state.

    Args:
        saved: the result of :func:`extract`.
        updater: the mask updater that :func:`extract` was given.
    """
    backend, memory = updater.backend, updater.memory
    backend.noted.update(saved.fresh)
    for layer, was in saved.layers:
        layer._restore(was.mask, was.ever_live_bits, was.target)
        layer.last_dropped, layer.last_grown = was.last_dropped, was.last_grown
        layer._clear_dropped_()
        backend.load_layer(layer, live_only=saved.live_only)
        if memory is not None:
            memory.restore(layer, was.memory)
        updater.state.restore(layer, was.state)
    updater.state.restore_run(saved.run_state)
    updater.progress.restore(saved.progress)


def only_makes_state(inner: Optimizer, gradients: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether a step only creates state, as distributed checkpointing does before it loads.

    Distributed checkpointing sets every learning rate and gradient to zero, and then steps an
    optimizer that has no state yet.

    Args:
        inner: the optimizer.
        gradients: returns all gradients of its parameters.
    """
    if inner.state or any(group.get("lr") != 0.0 for group in inner.param_groups):
        return False
    return not any(bool(gradient.any()) for gradient in gradients())


def _add_placeholders(state: dict[Any, Any], inner: Optimizer) -> None:
    """Add an entry for each trainable parameter that has no state.

    Distributed checkpointing expects state of all trainable parameters, or of none.
    """
    parameters = (parameter for group in inner.param_groups for parameter in group["params"])
    for index, parameter in enumerate(parameters):
        if parameter.requires_grad and state.get(index, {}) == {}:
            # A tensor, because torch's loaders skip a tensor that the new optimizer does not have.
            value = torch.zeros(1, dtype=torch.uint8, device=parameter.device)
            state[index] = {PLACEHOLDER_KEY: value}


def _without_placeholders(state: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return copies of the entries in ``state``, without those that :func:`attach` added."""
    entries = {index: dict(entry) for index, entry in state.items()}
    added = [
        index
        for index, entry in entries.items()
        if entry.pop(PLACEHOLDER_KEY, None) is not None and not entry
    ]
    for index in added:
        del entries[index]
    return entries


def _read(ours: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the dictionary of this library with the values that :func:`attach` was given.

    Keys that may be missing are added. Checkpoints of the first version lack two keys, and a loader
    that splits tuples loses those that are empty.
    """
    values = {
        key: from_text(value, device) if key in AS_TEXT and isinstance(value, str) else value
        for key, value in ours.items()
    }
    return {"history": (), "fresh": (), "run_state": (), **values}


def _pop_layer(
    saved: Mapping[str, Any], state: dict[Any, dict[str, Any]], keys: Sequence[Any]
) -> SavedLayer:
    """Return the values of one layer, and remove its tensors from ``state``.

    Args:
        saved: the layer's entry in the dictionary of this library.
        state: the state entries of all parameters.
        keys: the keys of ``state``, by the parameter's index.
    """
    key = keys[saved["index"]]
    entry = state.get(key, {})
    mask, ever_live_bits = entry.pop(MASK_KEY, None), entry.pop(EVER_LIVE_KEY, None)
    memory = entry.pop(MEMORY_KEY, None)
    ours = [name for name in entry if str(name).startswith(STATE_PREFIX)]
    kept = {name.removeprefix(STATE_PREFIX): entry.pop(name) for name in ours}
    if not entry:
        state.pop(key, None)
    return SavedLayer(
        **{**saved, "shape": tuple(saved["shape"])},
        mask=mask,
        ever_live_bits=ever_live_bits,
        memory=memory,
        state=kept,
    )


def _has_live_state(progress: Mapping[str, Any]) -> bool:
    """Whether the state of layers in a checkpoint has one value a live weight."""
    # Checkpoints of the first version have the bool "compact" instead.
    return bool(progress["compact"] if "compact" in progress else progress["state"] == "live")


def _warn_of_another_density(
    pairs: Sequence[tuple[SparseLayer, SavedLayer]], mask: str | Mapping[str, Tensor]
) -> None:
    """Warn if the optimizer was made with a density that differs from the checkpoint's.

    Masks that set their own live counts ("nonzero", or given masks) are not compared.
    """
    if mask == "nonzero" or not isinstance(mask, str):
        return
    total = sum(layer.numel for layer, _ in pairs)
    here = sum(layer.target for layer, _ in pairs)
    there = sum(was.target for _, was in pairs)
    # The counts of a group that was added later were rounded separately.
    if abs(here - there) > max(len(pairs), SAME_DENSITY * there):
        warnings.warn(
            f"the checkpoint's density is used: {there / total:.3g}. The density given at "
            f"construction is not: {here / total:.3g}.",
            UserWarning,
            stacklevel=4,
        )
