"""One mask update, made of a method, layers and state."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.transition import Transition, propose, rewire
from sparseopt.methods.base import Method, Move, Rewiring, Update
from sparseopt.optimizer.history import UpdateRecord
from sparseopt.optimizer.state.base import StateStore

__all__ = ["able_to_move", "skipped_update", "update_masks"]


def update_masks(
    layers: Sequence[SparseLayer],
    method: Method,
    update: Update,
    store: StateStore,
    *,
    zero: Collection[int] = (),
) -> UpdateRecord:
    """Move the masks of ``layers`` by ``method``, their weights and optimizer state with them.

    All transitions are decided before the first is made, so an error in a method changes nothing.

    Args:
        layers: all layers.
        method: what decides.
        update: what it is told.
        store: keeps the state.
        zero: the ids of gradients that are zero in every entry.
    """
    taking_part = able_to_move(layers, method, store, zero=zero)
    transitions = _transitions(taking_part, method, update) if taking_part else []
    new = _newly_live(transitions)
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    for layer, transition, values in transitions:
        store.move(layer, transition)
        if values is not None:
            _start_new(layer, transition, values)
    for layer in taking_part:
        if layer.weight.grad is not None:
            layer.mask_(layer.weight.grad)
    if not store.gathers:
        for layer in layers:
            layer.forget_positions()
    if transitions:
        store.forget_curvature()
    return _record(layers, update, new=new)


def able_to_move(
    layers: Sequence[SparseLayer],
    method: Method,
    store: StateStore,
    *,
    zero: Collection[int] = (),
) -> list[SparseLayer]:
    """Return the layers whose masks can move now.

    Those are not that are dense, that have no gradient where the method needs one, and whose
    weights were taken out of the param groups. Where gradients of dropped weights are looked at,
    one whose id is in ``zero`` is none: that of a layer that was not used is zero, where
    ``zero_grad(set_to_none=False)`` keeps it, and by it all candidates would tie.
    """
    groups = store.inner.param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    return [
        layer
        for layer in layers
        if not layer.is_dense
        and not (method.needs_gradient and _has_none(layer, method, zero))
        and id(layer.weight) in trained
    ]


def _has_none(layer: SparseLayer, method: Method, zero: Collection[int]) -> bool:
    gradient = layer.weight.grad
    return gradient is None or (method.needs_dense_gradient and id(gradient) in zero)


def skipped_update(layers: Sequence[SparseLayer], update: Update) -> UpdateRecord:
    """Return the record of an update in which nothing moves."""
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    return _record(layers, update, new=0, skipped=True)


#: A layer, what becomes of its mask, and what new weights start with, if that is not 0.
_Planned = tuple[SparseLayer, Transition, Tensor | None]


def _transitions(layers: Sequence[SparseLayer], method: Method, update: Update) -> list[_Planned]:
    """Decide for every layer in which something moves."""
    return [
        (layer, _transition(layer, move, method, update), _start_of(move))
        for layer, move in zip(layers, method.moves(layers, update), strict=True)
        if move.drop or move.grow
    ]


@torch.no_grad()
def _transition(layer: SparseLayer, move: Move, method: Method, update: Update) -> Transition:
    if isinstance(move, Rewiring):
        return rewire(
            layer,
            drop=move.drop,
            grow=move.grow,
            survivors=move.survivors,
            mask=move.mask,
            regrow=method.regrow,
        )
    return propose(
        layer,
        drop=move.drop,
        grow=move.grow,
        drop_scores=method.drop_scores(layer, update) if move.drop else None,
        grow_scores=method.grow_scores(layer, update) if move.grow else None,
        regrow=method.regrow,
    )


def _start_of(move: Move) -> Tensor | None:
    return move.values if isinstance(move, Rewiring) else None


@torch.no_grad()
def _start_new(layer: SparseLayer, transition: Transition, values: Tensor) -> None:
    """Write what weights start with that a transition, now made, did not keep."""
    layer.replace_(torch.where(transition.kept, layer.gather(layer.weight), layer.gather(values)))


def _newly_live(transitions: Sequence[_Planned]) -> int:
    """Count weights that are live after the transitions and not before; waits once."""
    grown = [transition for _, transition, _ in transitions if transition.grown]
    if not grown:
        return 0
    device = grown[0].stayed.device
    stayed = int(torch.stack([transition.stayed.to(device) for transition in grown]).sum())
    return sum(transition.positions.numel() for transition in grown) - stayed


def _record(
    layers: Sequence[SparseLayer], update: Update, *, new: int, skipped: bool = False
) -> UpdateRecord:
    live = sum(layer.live for layer in layers)
    numel = sum(layer.numel for layer in layers)
    return UpdateRecord(
        step=update.step,
        fraction=update.fraction,
        dropped=sum(layer.last_dropped for layer in layers),
        grown=sum(layer.last_grown for layer in layers),
        new=new / live,
        explored=sum(SparseLayer.ever_live_counts(layers)) / numel,
        density=live / numel,
        skipped=skipped,
    )
