"""Moves the masks of layers, and with them their weights and optimizer state, and records it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from sparseopt.distributed.choice_check import SameChoice
from sparseopt.distributed.ranks import is_distributed
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method
from sparseopt.methods.state import MethodState
from sparseopt.methods.update import Update
from sparseopt.optimizer.gradients import mask_gradient
from sparseopt.optimizer.planned_moves import Planned, plan_transitions, require_same_moves
from sparseopt.optimizer.progress import UpdateRecord
from sparseopt.optimizer.state.base import StateBackend

__all__ = [
    "able_to_move",
    "density_of",
    "make_transitions",
    "movable",
    "record_of",
    "skipped_update",
    "update_masks",
]


def update_masks(
    layers: Sequence[SparseLayer],
    method: Method,
    update: Update,
    backend: StateBackend,
    choice_check: SameChoice,
) -> UpdateRecord:
    """Move the masks of ``layers`` by ``method``, and with them weights and optimizer state.

    All transitions are decided before the first is made, so an error in a method changes nothing.

    Args:
        layers: all layers.
        method: the method, which decides.
        update: the update, as the method gets it.
        backend: keeps the state.
        choice_check: compares the ranks.

    Raises:
        RankMismatchError: if the method chooses differently on ranks with the same weights and
            gradients.
    """
    # An update that only brings counts down to their targets grows nothing, so no candidates tie.
    only_drops = method.reaches_target_at_t_end and update.fraction == 0.0
    zero = () if only_drops else update.zero_gradients
    taking_part = able_to_move(layers, method, backend, zero=zero)
    numbers = update.generator.get_state()
    transitions = plan_transitions(taking_part, method, update) if taking_part else []
    if is_distributed():
        require_same_moves(transitions, method, update, numbers, choice_check)
    new = make_transitions(
        layers, transitions, backend, update.state, mask_gradients_of=taking_part
    )
    return _record(layers, update, new=new)


def make_transitions(
    layers: Sequence[SparseLayer],
    transitions: Sequence[Planned],
    backend: StateBackend,
    state: MethodState | None,
    *,
    mask_gradients_of: Sequence[SparseLayer],
) -> int:
    """Make the planned transitions of masks, and with them of weights and all state.

    Args:
        layers: all layers.
        transitions: the planned transitions.
        backend: keeps the optimizer state.
        state: the method's state.
        mask_gradients_of: the layers whose gradients may be dense.

    Returns:
        How many weights are live now that were not live before.
    """
    new = _newly_live(transitions)
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    for layer, transition in transitions:
        backend.apply_transition(layer, transition)
        if state is not None:
            state.follow_mask(layer, transition)
    for layer in mask_gradients_of:
        mask_gradient(layer)
    if not backend.gathers:
        for layer in layers:
            layer._forget_positions()
    if transitions:
        backend.forget_curvature()
    return new


def able_to_move(
    layers: Sequence[SparseLayer],
    method: Method,
    backend: StateBackend,
    *,
    zero: Collection[int] = (),
) -> list[SparseLayer]:
    """Return the layers whose masks can move now.

    Excluded are dense layers, layers without a gradient if the method needs one, and layers whose
    weight left the param groups. For methods that read dense gradients, a gradient whose id is in
    ``zero`` counts as missing: ``zero_grad(set_to_none=False)`` leaves a zero gradient on a layer
    that was not used, and then all candidates would tie.
    """
    return [
        layer
        for layer in movable(layers, backend)
        if not (method.needs_gradient and _has_none(layer, method, zero))
    ]


def movable(layers: Sequence[SparseLayer], backend: StateBackend) -> list[SparseLayer]:
    """Return the layers that may be sparse and whose weight is in a param group."""
    groups = backend.inner.param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    return [layer for layer in layers if not layer.is_dense and id(layer.weight) in trained]


def _has_none(layer: SparseLayer, method: Method, zero: Collection[int]) -> bool:
    gradient = layer.weight.grad
    return gradient is None or (method.needs_dense_gradient and id(gradient) in zero)


def skipped_update(layers: Sequence[SparseLayer], update: Update) -> UpdateRecord:
    """Return the record of an update in which nothing moves."""
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    return _record(layers, update, new=0, skipped=True)


def _newly_live(transitions: Sequence[Planned]) -> int:
    """Count the weights that are live after the transitions and were not before; waits once."""
    grown = [transition for _, transition in transitions if transition.grown]
    if not grown:
        return 0
    device = grown[0].stayed.device
    stayed = int(torch.stack([transition.stayed.to(device) for transition in grown]).sum())
    return sum(transition.positions.numel() for transition in grown) - stayed


def _record(
    layers: Sequence[SparseLayer], update: Update, *, new: int, skipped: bool = False
) -> UpdateRecord:
    return record_of(layers, update.step, update.fraction, new=new, skipped=skipped)


def record_of(
    layers: Sequence[SparseLayer], step: int, fraction: float, *, new: int, skipped: bool = False
) -> UpdateRecord:
    """Return the record of the last change of masks, for the history."""
    live = sum(layer.live for layer in layers)
    numel = sum(layer.numel for layer in layers)
    return UpdateRecord(
        step=step,
        fraction=fraction,
        dropped=sum(layer.last_dropped for layer in layers),
        grown=sum(layer.last_grown for layer in layers),
        new=new / live,
        explored=sum(SparseLayer.ever_live_counts(layers)) / numel,
        density=density_of(layers),
        skipped=skipped,
    )


def density_of(layers: Sequence[SparseLayer]) -> float:
    """Return the live weights of ``layers`` over all their weights, in (0, 1]."""
    return sum(layer.live for layer in layers) / sum(layer.numel for layer in layers)
