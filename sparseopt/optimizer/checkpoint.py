"""Writes masks and progress into an ordinary optimizer state dict, and reads them.

A mask is a bool tensor in its parameter's ``state`` entry, beside one bit a weight for "was ever
live". Everything else is one dictionary in the first param group. Three rules follow from
distributed checkpointing. It keeps only ``state`` and ``param_groups``, so nothing is added at the
top level. It loads only the keys that a new optimizer has, so keys never depend on the step. It
splits dictionaries and lists into their items but saves a tuple as one value, so values that grow
are tuples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import described, slices_without
from sparseopt.methods.state import MethodState
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.state import StateBackend, with_own_memory
from sparseopt.utils.errors import CheckpointError
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "SavedLayer",
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
#: Two densities are equal if their relative difference is at most this.
SAME_DENSITY: Final = 0.01


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


@dataclass(frozen=True)
class SavedState:
    """The two parts of a state dict: one for the inner optimizer, and one for this library.

    ``layers`` pairs each layer of the optimizer with its values in the checkpoint.
    """

    inner: dict[str, Any]
    layers: list[tuple[SparseLayer, SavedLayer]]
    progress: dict[str, Any]


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
    indices = _parameter_indices(inner, updater.layers)
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
                MASK_KEY: layer.mask.clone(),
                EVER_LIVE_KEY: layer._ever_live_bits.clone(),
            }
        if memory is not None and not layer.is_dense:
            state[index] = {**state.get(index, {}), MEMORY_KEY: memory.saved(layer)}
        kept = {} if layer.is_dense else updater.state.saved(layer)
        if kept:
            named_kept = {STATE_PREFIX + name: tensor for name, tensor in kept.items()}
            state[index] = {**state.get(index, {}), **named_kept}
    groups = [dict(group) for group in state_dict["param_groups"]]
    groups[0][PROGRESS_KEY] = {
        "method": updater.method.name,
        "optimizer": type(inner).__name__,
        "state": "live" if live_only else "masked",
        **updater.progress.as_dict(),
        "named": named,
        "fresh": tuple((*key, value) for key, value in updater.backend.noted.items()),
        "run_state": updater.state.saved_run(),
        "layers": tuple(entries),
    }
    return {**state_dict, "state": state, "param_groups": groups}


def without_masks(backend: StateBackend) -> dict[str, Any]:
    """Return a state dict that a plain optimizer loads; nothing changes.

    Raises:
        RuntimeError: if a layer's weight is no longer in any param group.
    """
    inner = backend.inner
    indices = _parameter_indices(inner, backend.layers)
    state_dict = inner.state_dict()
    dense = {
        indices[layer.weight]: backend.dense_entry(layer)
        for layer in backend.layers
        if layer.weight in inner.state
    }
    # torch.save would write a view with the full tensor that it is a part of.
    state = {
        index: {name: with_own_memory(value) for name, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for index, entry in {**state_dict["state"], **dense}.items()
    }
    return {**state_dict, "state": state}


def extract(state_dict: Mapping[str, Any], updater: MaskUpdater, *, named: bool) -> SavedState:
    """Split a state dict into its two parts, if it fits this optimizer; nothing changes.

    Args:
        state_dict: the state dict.
        updater: the mask updater, with the layers to restore, the method and the inner optimizer.
        named: whether the layers have names of their own.

    Raises:
        CheckpointError: if the state dict has no masks, if it is of another method or of an inner
            optimizer whose state does not fit, if the layers or their shapes differ, or if a
            parameter has another position in the param groups.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    progress = groups[0].pop(PROGRESS_KEY, None) if groups else None
    if progress is None:
        raise CheckpointError(
            "the state dict has no masks. If a plain optimizer saved it, load it into the plain "
            "optimizer before you wrap it; new masks are then made. If it was saved with "
            "StateDictOptions(flatten_optimizer_state_dict=True), only the state of a plain "
            "optimizer was kept: save and load it without flattening."
        )
    state = {index: dict(entry) for index, entry in state_dict["state"].items()}
    # The keys are numbers, or names if distributed checkpointing has replaced the numbers.
    keys = [key for group in groups for key in group["params"]]
    layers = []
    for saved in progress["layers"]:
        key = keys[saved["index"]]
        entry = state.get(key, {})
        mask, ever_live_bits = entry.pop(MASK_KEY, None), entry.pop(EVER_LIVE_KEY, None)
        memory = entry.pop(MEMORY_KEY, None)
        ours = [name for name in entry if str(name).startswith(STATE_PREFIX)]
        kept = {name.removeprefix(STATE_PREFIX): entry.pop(name) for name in ours}
        if not entry:
            state.pop(key, None)
        layers.append(
            SavedLayer(
                **{**saved, "shape": tuple(saved["shape"])},
                mask=mask,
                ever_live_bits=ever_live_bits,
                memory=memory,
                state=kept,
            )
        )
    _check_kind(progress, groups[0], updater)
    pairs = _match_layers(layers, updater, named=named and progress["named"])
    _check_method_state(pairs, progress, updater.state)
    return SavedState({**state_dict, "state": state, "param_groups": groups}, pairs, progress)


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
    names = {was.name: layer.name for layer, was in saved.layers}
    # Checkpoints of the first version lack this key.
    fresh = saved.progress.get("fresh", ())
    backend.noted.update({(names[layer], state): value for layer, state, value in fresh})
    live_only = _has_live_state(saved.progress)
    for layer, was in saved.layers:
        layer._restore(was.mask, was.ever_live_bits, was.target)
        layer.last_dropped, layer.last_grown = was.last_dropped, was.last_grown
        layer._clear_dropped_()
        backend.load_layer(layer, live_only=live_only)
        if memory is not None:
            memory.restore(layer, was.memory)
        updater.state.restore(layer, was.state)
    updater.state.restore_run(_run_state(saved.progress))
    updater.progress.restore(saved.progress, names)


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


def _has_live_state(progress: Mapping[str, Any]) -> bool:
    """Whether the state of layers in a checkpoint has one value a live weight."""
    # Checkpoints of the first version have the bool "compact" instead.
    return bool(progress["compact"] if "compact" in progress else progress["state"] == "live")


def _check_kind(
    progress: Mapping[str, Any], group: Mapping[str, Any], updater: MaskUpdater
) -> None:
    """Check that a checkpoint is of this method and of a similar inner optimizer.

    A checkpoint of another class of optimizer passes if its param groups have all settings of this
    one, as with Adam and AdamW.
    """
    method, inner = updater.method, updater.backend.inner
    if progress["method"] != method.name:
        raise CheckpointError(
            f"the checkpoint is of method {progress['method']!r}, but this optimizer has "
            f"method={method.name!r}: make the optimizer with the checkpoint's method."
        )
    theirs, mine = progress["optimizer"], type(inner).__name__
    settings = set(inner.param_groups[0]) - set(group)
    if theirs != mine and settings:
        raise CheckpointError(
            f"the checkpoint is of the inner optimizer {theirs}, but this inner optimizer is "
            f"{mine}, and the checkpoint lacks its setting {sorted(settings)[0]!r}."
        )


def _check_method_state(
    pairs: Sequence[tuple[SparseLayer, SavedLayer]],
    progress: Mapping[str, Any],
    method_state: MethodState,
) -> None:
    """Check that a checkpoint has the state that the method keeps, by names and shapes.

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
    run_here, run_there = set(method_state.run), {name for name, _ in _run_state(progress)}
    if run_here != run_there:
        raise CheckpointError(
            f"the method keeps {_described(run_here)} for the run, but the checkpoint has "
            f"{_described(run_there)}: another version of the method saved it, or the method had "
            "other settings."
        )


def _match_layers(
    saved: Sequence[SavedLayer], updater: MaskUpdater, *, named: bool
) -> list[tuple[SparseLayer, SavedLayer]]:
    """Pair each layer with its values in the checkpoint.

    They are matched by name, without the prefixes of wrappers, if both sides have names; otherwise
    by the index of their parameter. The order of the layers may differ: with a model it is the
    order of the modules, and without a model the order of the param groups.

    Args:
        saved: the layers of the checkpoint.
        updater: the mask updater, with the optimizer's layers.
        named: whether both sides have names.
    """
    layers = updater.layers
    indices = _parameter_indices(updater.backend.inner, layers)
    if named:
        by_name = {canonical_name(layer.name): layer for layer in saved}
        _check_same_layers([layer.name for layer in layers], list(by_name))
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
        _check_slices(layer, was)
    return pairs


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


def _check_same_layers(here: list[str], there: list[str]) -> None:
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
            f"({len(surplus)} such layers): it is of another model, or of other layers."
        )


def _run_state(progress: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    # Checkpoints of the first version lack this key.
    items: Sequence[tuple[str, Any]] = progress.get("run_state", ())
    return items


def _described(kept: Collection[str] | Mapping[str, tuple[int, ...]]) -> str:
    if isinstance(kept, Mapping):
        return ", ".join(f"{name!r} of shape {shape}" for name, shape in kept.items()) or "nothing"
    return ", ".join(map(repr, sorted(kept))) or "nothing"


def _first_difference(saved: Sequence[SavedLayer], layers: Sequence[SparseLayer]) -> str:
    for was, layer in zip(saved, layers, strict=False):
        if was.shape != tuple(layer.weight.shape):
            return f"first difference: {was.name!r} {was.shape} there, {layer!r} here"
    return "the first ones agree"


def _parameter_indices(inner: Optimizer, layers: Sequence[SparseLayer]) -> dict[Tensor, int]:
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
