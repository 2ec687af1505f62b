"""One mask update: scores from the method, drop and grow in the layers, state moved along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseopt.history import UpdateRecord
from sparseopt.layers import SparseLayer, Transition
from sparseopt.methods.base import Method, Move, Update
from sparseopt.state.base import StateStore

__all__ = ["gradients_are_finite", "skipped_update", "update_masks"]


def gradients_are_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether no gradient has an infinity or NaN; waits for the device once."""
    dense = [gradient for gradient in gradients if gradient.layout == torch.strided]
    norm = torch.nn.utils.get_total_norm(dense, norm_type=float("inf"))
    return bool(norm.isfinite())


def update_masks(
    layers: Sequence[SparseLayer], method: Method, update: Update, store: StateStore
) -> UpdateRecord:
    """Move the masks of ``layers`` by ``method``, their weights and optimizer state with them.

    Dense layers, and layers without a gradient, are left out. All transitions are decided before
    the first is made, so an error in a method changes nothing.
    """
    moving = [layer for layer in layers if not layer.is_dense and layer.weight.grad is not None]
    transitions = _transitions(moving, method, update) if moving else []
    new = _newly_live(moving, transitions)
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    for layer, transition in zip(moving, transitions, strict=True):
        store.move(layer, transition)
        assert layer.weight.grad is not None
        layer.mask_(layer.weight.grad)
    if transitions:
        store.forget_curvature()
    return _record(layers, update, new=new)


def skipped_update(layers: Sequence[SparseLayer], update: Update) -> UpdateRecord:
    """Return the record of an update in which nothing moves."""
    for layer in layers:
        layer.last_dropped = layer.last_grown = 0
    return _record(layers, update, new=0, skipped=True)


def _transitions(
    layers: Sequence[SparseLayer], method: Method, update: Update
) -> list[Transition]:
    moves = method.moves(layers, update)
    return [
        _transition(layer, move, method, update)
        for layer, move in zip(layers, moves, strict=True)
    ]


@torch.no_grad()
def _transition(layer: SparseLayer, move: Move, method: Method, update: Update) -> Transition:
    return layer.propose(
        drop=move.drop,
        grow=move.grow,
        drop_scores=method.drop_scores(layer, update) if move.drop else None,
        grow_scores=method.grow_scores(layer, update) if move.grow else None,
        regrow=method.regrow,
    )


def _newly_live(layers: Sequence[SparseLayer], transitions: Sequence[Transition]) -> int:
    """Count weights that are live after the transitions and not before; waits once."""
    counts = [
        (transition.mask & ~layer.mask.reshape(-1)).sum().to(layers[0].weight.device)
        for layer, transition in zip(layers, transitions, strict=True)
        if transition.grown
    ]
    return int(torch.stack(counts).sum()) if counts else 0


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
