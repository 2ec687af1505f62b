"""Checks by their outputs whether two models compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from sparseopt.structured.graph.tracing import Trace, where
from sparseopt.utils.errors import CompactionError
from sparseopt.utils.nested import leaves
from sparseopt.utils.probe import (
    no_attention_fast_path,
    no_key_value_cache,
    preserve_model,
)
from sparseopt.utils.random import uniform
from sparseopt.utils.tensors import is_strided

__all__ = ["Agreement", "disagreement", "in_mode", "is_comparable"]

#: All roundings in a model may change its outputs by so many times what a rounding of its inputs
#: changes.
_ROUNDINGS: Final = 10
#: The largest difference that may be called rounding, relative to the largest entry.
_MOST: Final = 0.05


@dataclass(frozen=True)
class _Run:
    """One forward pass of the larger model.

    Attributes:
        training: the mode of the model.
        args: positional inputs.
        kwargs: keyword inputs.
        outputs: what it returned.
        rounded: what it returned for inputs whose last digit is another; ``None`` if it failed,
            or if outputs can't be compared.
        is_random: whether it drew random numbers, so that outputs can't be compared.
    """

    training: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any
    rounded: Any
    is_random: bool


class Agreement:
    """The outputs of a model, with which the outputs of a smaller model have to agree.

    The model runs in evaluation mode and, if ``training`` is given, in training mode. Dropout
    modules stay off, because a smaller model draws other numbers. A value may have been constant
    for these inputs only. So the model also runs on other numbers of the same shapes, unless it
    refuses them. Some models multiply rounding errors, such as deep networks that normalise over
    few samples. So the model runs a second time on each input, with another last digit.

    Args:
        model: the larger model, which may change afterwards.
        args: positional inputs.
        kwargs: keyword inputs.
        training: the model's graph in training mode, which says whether training is random.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        training: Trace | None = None,
    ) -> None:
        others = _with_other_numbers(args, kwargs)
        self._runs = [_run(model, False, args, kwargs), *_run_if_possible(model, False, *others)]
        if training is not None:
            is_random = _is_random(model, training)
            self._runs += [
                _run(model, True, args, kwargs, is_random=is_random),
                *_run_if_possible(model, True, *others, is_random=is_random),
            ]

    def check(self, smaller: nn.Module) -> None:
        """Compare the outputs of a smaller model.

        Raises:
            CompactionError: if the smaller model fails, or if its outputs differ by more than about
                the square root of the precision of their type, and by more than rounding explains.
        """
        for run in self._runs:
            with in_mode(smaller, run.training):
                found = _run_smaller(smaller, run.args, run.kwargs)
            if not run.is_random:
                _compare(run, found)


def _run(
    model: nn.Module,
    training: bool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    is_random: bool = False,
) -> _Run:
    with in_mode(model, training):
        outputs = model(*args, **kwargs)
    rounded = None
    if not is_random:
        other_args, other_kwargs = tree_map_only(Tensor, _rounded, (args, dict(kwargs)))
        # The model may raise any error, for example for a probability above 1.
        with suppress(Exception), in_mode(model, training):
            rounded = model(*other_args, **other_kwargs)
    return _Run(training, args, kwargs, outputs, rounded, is_random)


def _rounded(value: Tensor) -> Tensor:
    """Return floating-point numbers of which every second one has another last digit."""
    if not _is_of_numbers(value):
        return value
    every_second = torch.arange(value.numel(), device=value.device).view(value.shape) % 2 == 0
    return torch.where(every_second, value * (1 + torch.finfo(value.dtype).eps), value)


def _run_if_possible(
    model: nn.Module,
    training: bool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    is_random: bool = False,
) -> list[_Run]:
    try:
        return [_run(model, training, args, kwargs, is_random=is_random)]
    except Exception:
        return []


def _run_smaller(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the outputs of a smaller model.

    Raises:
        CompactionError: if the model fails.
    """
    try:
        return model(*args, **kwargs)
    except Exception as error:
        raise CompactionError(
            f"model={type(model).__name__}(...) does not run without its dropped channels "
            f"({error}): does its forward() have a number of channels written in it?"
        ) from error


def _compare(run: _Run, found: Any) -> None:
    """Compare the outputs of two models.

    Args:
        run: a forward pass of the larger model.
        found: the outputs of the smaller model.

    Raises:
        CompactionError: if shapes differ, if other entries are infinite or NaN, or if the outputs
            differ by more than about the square root of the precision of their type, and by more
            than rounding explains.
    """
    # Other numbers may be sizes, which differ in a smaller model.
    before, after, rounded = (
        [one for one in leaves(outputs) if _is_of_numbers(one)]
        for outputs in (run.outputs, found, run.rounded)
    )
    difference = disagreement(before, after, rounded=rounded)
    if difference is not None:
        mode = "training" if run.training else "evaluation"
        raise CompactionError(
            f"the smaller model's output {difference}, in {mode} mode: does its forward() have a "
            "number of channels written in it? If not, try larger example inputs, with more "
            "samples, and report the model if it fails with these too."
        )


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Run a model in one mode, without gradients, dropout, caches and torch's fast attention.

    For some masks the fast attention returns NaN where the other implementation has numbers.
    """
    with (
        preserve_model(model),
        torch.no_grad(),
        no_attention_fast_path(),
        no_key_value_cache(model),
    ):
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        yield


def _is_random(model: nn.Module, training: Trace) -> bool:
    """Whether training draws random numbers outside of dropout modules."""
    modules = dict(model.named_modules())
    return any(
        torch.Tag.nondeterministic_seeded in node.target.tags
        and not isinstance(modules.get(where(node)), nn.modules.dropout._DropoutNd)
        for node in training.module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    )


def _with_other_numbers(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs of the same shapes with other floating-point numbers of the same size.

    A tensor without negative numbers gets no negative ones, because it may serve as an index. A
    tensor with infinite numbers stays, because it is a mask.
    """
    generator = torch.Generator().manual_seed(0)

    def other(value: Any) -> Any:
        if not _is_of_numbers(value) or not bool(value.isfinite().all()):
            return value
        size = float(value.abs().max()) if value.numel() else 0.0
        numbers = uniform(value.shape, generator) * (size or 1.0)
        if bool((value < 0).any()):
            numbers = 2 * numbers - size
        return numbers.to(value.device, value.dtype)

    others: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(other, (args, dict(kwargs)))
    return others


def _is_of_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided


def disagreement(
    expected: Any, found: Any, precision: torch.dtype = torch.float32, *, rounded: Any = None
) -> str | None:
    """Return how the outputs of two models differ, or ``None``.

    All numbers in the outputs are compared, also those that objects such as dataclasses hold.
    Infinite and NaN entries have to be equal. The finite entries may differ by about the square
    root of the precision of their type, relative to the largest entry. Integers may be positions of
    largest entries, which rounding decides between equals. So a share of them may differ: the
    square root of ``precision``.

    Args:
        expected: the outputs of one model.
        found: the outputs of the other model.
        precision: the number format that both compute in.
        rounded: the outputs of the first model for rounded inputs. Then the finite entries may also
            differ by a few times what this rounding changed.

    Returns:
        The rest of a sentence about "the output", such as ``"is 0.5 off, of values up to 2"``.
    """
    before, after = leaves(expected), leaves(found)
    if len(before) != len(after):
        return f"has {len(after)} parts and not {len(before)}"
    noisy = leaves(rounded)
    if len(noisy) != len(before):
        noisy = [None] * len(before)
    differences = (
        _difference(*parts, precision) for parts in zip(before, after, noisy, strict=True)
    )
    return next((found for found in differences if found is not None), None)


def is_comparable(outputs: Any) -> bool:
    """Whether there are numbers in the outputs of a model, which :func:`disagreement` compares."""
    return any(isinstance(value, (int, float)) or _is_compared(value) for value in leaves(outputs))


def _is_compared(value: Any) -> bool:
    return is_strided(value) and not value.is_quantized


def _difference(before: Any, after: Any, rounded: Any, precision: torch.dtype) -> str | None:
    """Return how two leaves differ, or ``None``; see :func:`disagreement`."""
    if isinstance(before, Tensor) != isinstance(after, Tensor):
        return f"has a {type(after).__name__} and not a {type(before).__name__}"
    if isinstance(before, float) and isinstance(after, float):
        before, after = (torch.tensor(one, dtype=precision) for one in (before, after))
    if isinstance(before, int):
        return None if before == after else f"has {after} and not {before}"
    if not _is_compared(before) or not _is_compared(after):
        return None
    if before.is_complex() and after.is_complex():
        before, after = (torch.view_as_real(one.resolve_conj()) for one in (before, after))
    if before.is_floating_point() != after.is_floating_point():
        return f"has a tensor of {after.dtype} and not of {before.dtype}"
    return _difference_of_tensors(before, after, rounded, precision)


def _difference_of_tensors(
    before: Tensor, after: Tensor, rounded: Any, precision: torch.dtype
) -> str | None:
    """Return how two tensors differ, or ``None``; see :func:`disagreement`."""
    if before.shape != after.shape:
        return f"has the shape {tuple(after.shape)} and not {tuple(before.shape)}"
    if not before.is_floating_point():
        share = (before != after).float().mean().item() if before.numel() else 0.0
        allowed = torch.finfo(precision).eps ** 0.5
        return f"has other integers in {share:.2%} of the places" if share > allowed else None
    finite = before.isfinite() & after.isfinite()
    same = (before == after) | (before.isnan() & after.isnan())
    if not bool((finite | same).all()):
        return "is infinite or NaN in other places"
    if not bool(finite.any()):
        return None
    scale = before[finite].abs().max().item()
    apart = (before - after)[finite].abs().max().item()
    allowed = torch.finfo(before.dtype).eps ** 0.5 * max(scale, 1e-3)
    if isinstance(rounded, Tensor) and rounded.shape == before.shape:
        noise = (before - rounded)[finite].abs().max().item()
        allowed = max(allowed, min(_ROUNDINGS * noise, _MOST * scale))
    return None if apart <= allowed else f"is {apart:.3g} off, of values up to {scale:.3g}"
