"""Turns a method's moves into transitions of masks, and checks all moves before any is made.

A user's own method may return anything. A value that does not fit raises an error that names the
method, the layer, the value and what would be right. No mask, weight or state has changed by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from sparseopt.distributed.choice_check import SameChoice, checksum, mixed
from sparseopt.distributed.dtensor import full_tensor, placement
from sparseopt.masks.drop_and_grow import Transition, plan_mask, plan_update
from sparseopt.masks.indices import count_true
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import left_zero
from sparseopt.methods.base import Method
from sparseopt.methods.update import Move, Rewiring, Update
from sparseopt.utils.validation import whole_number

__all__ = [
    "Planned",
    "plan_transitions",
    "require_gradients_asked_for",
    "require_same_moves",
]

#: A layer and the transition of its mask.
Planned = tuple[SparseLayer, Transition]


@dataclass(frozen=True)
class _Doubt:
    """An error to raise if ``count``, a 0-dimensional tensor on any device, is not zero.

    Many counts are collected, so that one wait for the device decides them all.
    """

    count: Tensor
    message: str


@torch.no_grad()
def plan_transitions(
    layers: Sequence[SparseLayer], method: Method, update: Update
) -> list[Planned]:
    """Plan the transition of every layer in which weights move; change nothing.

    This waits for the device once, to check scores; on a CPU it does not wait.

    Raises:
        TypeError: if the method returns a move that is not a :class:`Move`, or scores that are not
            a tensor.
        ValueError: if counts, shapes or scores do not fit the layer.
    """
    moves = _checked_moves(layers, method, update)
    doubts: list[_Doubt] = []
    planned = [
        (layer, _transition(layer, move, method, update, doubts))
        for layer, move in zip(layers, moves, strict=True)
        if move.drop or move.grow
    ]
    _settle(doubts)
    return planned


@torch.no_grad()
def require_same_moves(
    planned: Sequence[Planned],
    method: Method,
    update: Update,
    numbers: Tensor,
    choice_check: SameChoice,
) -> None:
    """Raise if another rank has planned other moves from the same weights and gradients.

    Weights and gradients of sharded layers are not compared: the ranks that share them plan the
    same moves in any case.

    Args:
        planned: the moves.
        method: the method that planned them.
        update: the update that the method got.
        numbers: the state of the random generator before the moves were planned.
        choice_check: compares the ranks.

    Raises:
        RankMismatchError: if another rank has planned other moves.
    """
    names = [(layer.name, layer.numel, str(placement(layer.weight))) for layer, _ in planned]
    seen: list[Tensor] = []
    chosen: list[Tensor] = []
    for layer, transition in planned:
        if not layer.is_sharded:
            gradient = layer.weight.grad
            seen += [checksum(value) for value in (layer.weight, gradient) if value is not None]
        chosen.append(mixed(transition.positions.long() * 2 + transition.kept).sum())
        if transition.start is not None:
            begins = full_tensor(transition.start).reshape(-1)
            new = transition.positions.long()
            chosen.append(checksum(torch.where(transition.kept, 0, begins[new])))
    about = (method.name, update.step, numbers.numpy().tobytes(), *names)
    message = (
        f"method {method.name!r} chose different weights on rank {dist.get_rank()} and on another "
        "rank from the same weights and gradients: it draws random numbers that differ from rank "
        "to rank. Draw them with update.random_scores(layer), or from update.generator, which is "
        "the same everywhere."
    )
    choice_check.require(about, seen, chosen, message=message)


@torch.no_grad()
def require_gradients_asked_for(
    layers: Sequence[SparseLayer], method: Method, update: Update
) -> None:
    """Raise if growth scores come from dense gradients that the method does not declare.

    Masked gradients are zero wherever a weight could grow. The test sets half of these zeros to
    NaN. If exactly the scores of these weights turn from numbers into NaN, the scores are computed
    from the gradients. (A method that only sums gradients would return NaN for all scores.) Nothing
    changes. Call it where gradients are masked.

    Raises:
        ValueError: if they do.
    """
    movable = (
        layer
        for layer in layers
        if not (layer.is_dense or layer.is_sharded)
        and layer.numel - layer.live > 1
        and layer.weight.is_leaf
        and layer.weight.grad is not None
    )
    layer = next(movable, None)
    if layer is None or type(method).grow_scores is Method.grow_scores:
        return
    gradient = layer.weight.grad
    assert gradient is not None
    dropped = (~layer.mask).reshape(-1).nonzero().reshape(-1)
    poisoned = gradient.clone(memory_format=torch.contiguous_format)
    poisoned.view(-1)[dropped[::2]] = torch.nan
    plain = _tried(layer, method, update, gradient)
    found = _tried(layer, method, update, poisoned)
    if plain is None or found is None or plain[dropped].isnan().any():
        return
    if found[dropped[::2]].isnan().all() and not found[dropped[1::2]].isnan().any():
        raise ValueError(
            f"grow_scores() of method {method.name!r} reads the gradient of weights that are not "
            f"live, in layer {layer.name!r}, and this gradient is 0 for all of them: set "
            "needs_dense_gradient = True in the class, so that update steps have dense gradients."
        )


def _tried(layer: SparseLayer, method: Method, update: Update, gradient: Tensor) -> Tensor | None:
    """Return the growth scores, 1-D, that a method computes with another gradient.

    The result is ``None`` if the method fails. Random numbers and the method's state are restored.
    """
    weight, state, numbers = layer.weight, update.state, update.generator.get_state()
    before = weight.grad
    kept = (
        {} if state is None else {name: tensor.clone() for name, tensor in state.of(layer).items()}
    )
    run = () if state is None else state.saved_run()
    scores: object = None
    devices = [] if weight.device.type == "cpu" else [weight.device]
    # A method may refuse NaN, or need a call of moves() first. Then there is no result.
    with (
        contextlib.suppress(Exception),
        torch.random.fork_rng(devices, device_type=weight.device.type),
    ):
        try:
            weight.grad = gradient
            scores = method.grow_scores(layer, update)
        finally:
            weight.grad = before
            update.generator.set_state(numbers)
            if state is not None:
                state.restore(layer, kept)
                state.restore_run(run)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        return None
    return scores.reshape(-1)


def _checked_moves(layers: Sequence[SparseLayer], method: Method, update: Update) -> Sequence[Move]:
    """Return the method's moves, after a check that each layer has one that fits it."""
    moves: object = method.moves(layers, update)
    what = f"moves() of method {method.name!r}"
    if not isinstance(moves, Sequence) or len(moves) != len(layers):
        got = f"{len(moves)} of them" if isinstance(moves, Sequence) else repr(moves)
        raise ValueError(
            f"{what} returned {got}: it must return a list of one Move for each of the "
            f"{len(layers)} layers that it was given, in their order."
        )
    checked = [
        _with_plain_counts(move, layer, what) for layer, move in zip(layers, moves, strict=True)
    ]
    for layer, move in zip(layers, checked, strict=True):
        spared = layer.live if method.regrow == "never" else layer.live - move.drop
        droppable = layer.live if isinstance(move, Rewiring) else layer.droppable
        if not (
            0 <= move.drop <= droppable
            and 0 <= move.grow <= layer.numel - spared
            and layer.live - move.drop + move.grow >= 1
        ):
            raise ValueError(
                f"{what} returned drop={move.drop}, grow={move.grow} for layer {layer.name!r}, "
                f"which has {layer.live} of {layer.numel} weights live: drop must be at most "
                f"{droppable}, grow at most {layer.numel - spared}, and one weight must stay"
                + (" in every slice of weight norm." if layer.norm_slices else ".")
            )
    return checked


def _with_plain_counts(move: object, layer: SparseLayer, what: str) -> Move:
    """Return the move with its counts as ints: a checkpoint holds no numbers of NumPy."""
    if not isinstance(move, Move):
        raise TypeError(f"{what} returned {move!r} for layer {layer.name!r}: it must be a Move.")
    drop, grow = (
        whole_number(f"{what} returned {name}={count!r} for layer {layer.name!r}", count)
        for name, count in (("drop", move.drop), ("grow", move.grow))
    )
    return replace(move, drop=drop, grow=grow)


def _transition(
    layer: SparseLayer, move: Move, method: Method, update: Update, doubts: list[_Doubt]
) -> Transition:
    """Return the transition for a move of one layer, from the method's scores or its Rewiring.

    Shapes and types are checked at once. Checks of values, which would wait for the device, are
    added to ``doubts``.
    """
    if isinstance(move, Rewiring):
        _check_rewiring(layer, move, method, doubts)
        return plan_mask(
            layer,
            drop=move.drop,
            grow=move.grow,
            survivors=move.survivors,
            mask=move.mask,
            start=move.values,
            regrow=method.regrow,
        )
    drop_scores = grow_scores = None
    if move.drop:
        drop_scores = method.drop_scores(layer, update)
        _check_scores("drop_scores", drop_scores, (layer.live,), layer, method)
        _doubt_nan("drop_scores", drop_scores, layer, method, doubts)
    if move.grow:
        grow_scores = method.grow_scores(layer, update)
        _check_scores("grow_scores", grow_scores, tuple(layer.weight.shape), layer, method)
        _doubt_nan("grow_scores", full_tensor(grow_scores), layer, method, doubts)
    return plan_update(
        layer,
        drop=move.drop,
        grow=move.grow,
        drop_scores=drop_scores,
        grow_scores=grow_scores,
        regrow=method.regrow,
    )


def _check_scores(
    function: str, scores: object, shape: tuple[int, ...], layer: SparseLayer, method: Method
) -> None:
    """Raise unless ``scores`` is a tensor of real numbers of the right shape."""
    what = f"{function}() of method {method.name!r} for layer {layer.name!r}"
    if not isinstance(scores, Tensor) or scores.is_complex():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{what} returned {got}: it must return a tensor of real numbers.")
    if tuple(scores.shape) == shape:
        return
    right = (
        "one score for each live weight; layer.gather(scores) selects these from scores of the "
        "weight's shape"
        if function == "drop_scores"
        else "one score for each weight, live or not"
    )
    raise ValueError(
        f"{what} returned shape {tuple(scores.shape)}: the weight has shape "
        f"{tuple(layer.weight.shape)} and {layer.live} live entries, and {function}() must "
        f"return {shape}, {right}."
    )


def _doubt_nan(
    function: str, scores: Tensor, layer: SparseLayer, method: Method, doubts: list[_Doubt]
) -> None:
    """Add an error for scores that are NaN; growth scores of live weights may be NaN."""
    unknown, whose = scores.isnan().reshape(-1), "live weights"
    if unknown.device.type == "cpu" and not count_true(unknown):
        return
    if function == "grow_scores":
        # Scores of survivors don't matter; among the weights that drop, NaN ranks last.
        unknown.scatter_(0, layer.positions().long(), False)
        whose = "weights that are not live"
    doubts.append(
        _Doubt(
            unknown.sum(),
            f"{function}() of method {method.name!r} for layer {layer.name!r} returned NaN for "
            f"{{}} {whose}, of {unknown.numel()} scores: each must be a number, which may be -inf "
            "or inf, because NaN can't be ranked.",
        )
    )


def _check_rewiring(
    layer: SparseLayer, move: Rewiring, method: Method, doubts: list[_Doubt]
) -> None:
    """Check the tensors of a Rewiring; add errors for wrong counts and for slices of zeros."""
    what = f"moves() of method {method.name!r} for layer {layer.name!r}"
    for name, flags in (("survivors", move.survivors), ("mask", move.mask)):
        if flags.shape != (layer.numel,) or flags.dtype != torch.bool:
            raise ValueError(
                f"{what} returned a Rewiring whose {name} is {flags.dtype} of shape "
                f"{tuple(flags.shape)}: it must be torch.bool of shape ({layer.numel},)."
            )
    if move.values is not None and move.values.shape != layer.weight.shape:
        raise ValueError(
            f"{what} returned a Rewiring whose values have shape {tuple(move.values.shape)}: the "
            f"weight has {tuple(layer.weight.shape)}."
        )
    if layer.norm_slices:
        # With "keep" a weight that drops and grows in this update keeps its value too.
        stays = move.mask if method.regrow == "keep" else move.survivors
        doubts.append(
            _Doubt(
                left_zero(layer, move.mask, stays, move.values).sum(),
                f"{what} returned a Rewiring after which {{}} of {layer.norm_slices} slices along "
                f"dimension {layer.norm_dim} are zero, but weight norm divides each slice by its "
                "norm: every slice must keep a live weight that is not zero.",
            )
        )
    live = layer.live - move.drop + move.grow
    doubts.append(
        _Doubt(
            move.mask.sum() - live,
            f"{what} returned a Rewiring whose mask is off by {{:+}} live weights: "
            f"with drop={move.drop} and grow={move.grow}, {layer.live} live weights become {live}.",
        )
    )


def _settle(doubts: Sequence[_Doubt]) -> None:
    """Raise the first error whose count is not zero, after one wait for the device."""
    if not doubts:
        return
    device = doubts[0].count.device
    counts = torch.stack([doubt.count.to(device) for doubt in doubts]).tolist()
    for doubt, count in zip(doubts, counts, strict=True):
        if count:
            raise ValueError(doubt.message.format(count))
