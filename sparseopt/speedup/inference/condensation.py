"""``condense``: the fastest implementation of a model for inference on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.inference.assembly import SPARSE, Assembly, Format
from sparseopt.speedup.inference.copies import copy_for_inference
from sparseopt.speedup.inference.dense_implementations import AS_IT_IS
from sparseopt.speedup.inference.masks import Masks, masks_by_name
from sparseopt.speedup.inference.report import CondensationReport, LayerTimes
from sparseopt.speedup.timing import Timing, clock_of, time_in_turn
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.example_inputs import as_arguments
from sparseopt.utils.probe import preserve_attributes, preserve_buffers, preserve_random_state
from sparseopt.utils.random import normal
from sparseopt.utils.validation import (
    check_changes_mode,
    check_count,
    check_inputs_have_values,
    check_model,
)
from sparseopt.utils.wrappers import unwrapped

__all__ = ["Condensation", "Condensed", "condense"]

Precision = Literal["same", "fastest"]

_WARMUP: Final = 2
#: The shortest duration of one measurement, in seconds.
_LONG_ENOUGH: Final = 5e-3


@dataclass(frozen=True)
class Condensed:
    """What :func:`condense` returns.

    Attributes:
        model: the copy for inference, in evaluation mode. It takes the same inputs as the model.
        report: all times, and what was chosen; print it.

    Example:
        >>> import torch
        >>> from sparseopt import condense
        >>> model = torch.nn.Linear(64, 64)
        >>> condensed = condense(
        ...     model, "nonzero", example_inputs=torch.randn(1, 64), rounds=1, compiled=False)
        >>> condensed.report.precision
        'float32'
    """

    model: nn.Module
    report: CondensationReport


def condense(
    model: nn.Module,
    masks: Masks,
    *inputs: Any,
    example_inputs: Any = None,
    precision: Precision = "same",
    scripted: bool = True,
    compiled: bool = True,
    rounds: int = 7,
) -> Any:
    """Return a copy of a model for inference, in the fastest implementation on this machine.

    Convolutions and linear layers compute with live weights only, by kernels for CPUs, wherever
    that is measured to be faster. BatchNorm is folded into weights and biases. The kernels also
    compute ReLU and add residuals. Between sparse layers, maps stay in the kernels' layout.

    The full model is timed on the example inputs, with the current number of threads: as it is,
    channels-last, folded (by oneDNN), as frozen TorchScript, as frozen ``torch.compile``, and
    sparse. An implementation that does not compute the same as the model is left out. The returned
    model is the one that is fastest beyond the spread of the measurement, so it is never slower
    than the fastest dense implementation. All implementations are timed in bfloat16 as well. If one
    of these is faster, the first line of the report says so.

    Some weights are computed from other parameters: by ``torch.nn.utils.prune``, a parametrization,
    or ``weight_norm``. In the copy they have their current values. Layers with hooks, or with
    a function that is replaced on the layer itself, stay as they are. If a module around the layers
    has hooks, if ``forward`` is replaced on the model itself, or if ``forward()`` writes to buffers
    or to its inputs, the modules keep their own code and nothing is folded; the report says why. A
    model that is condensed under autocast always computes under autocast, and warns if autocast is
    off. A folded or sparse model takes calls like the example inputs only, except for the values
    and shapes of tensors, numbers that the code only computes with, and optional arguments that it
    only passes on; others raise a ``ValueError``. If the inputs hold objects other than tensors,
    numbers, texts, ``None``, and lists, tuples and dicts of them, or if ``forward()`` draws random
    numbers that would be the same in each call, the modules keep their own code, and all calls are
    taken.

    Args:
        model: the model, which is not changed.
        masks: which weights are live: the optimizer that trains them, bool tensors by name, or
            ``"nonzero"`` for a model that another tool has pruned, such as
            ``torch.nn.utils.prune``.
        inputs: the spelling of 0.1.0 for example inputs, deprecated.
        example_inputs: inputs as in inference: a tensor, a tuple of positional inputs, a mapping of
            keyword inputs, or a pair of both. Which implementation is fastest depends on the batch.
            By default random numbers in the shapes of the first training step.
        precision: ``"same"`` keeps the number format. ``"fastest"`` may also return a model that
            computes in bfloat16; its inputs and outputs keep their number format.
        scripted: whether to try frozen TorchScript. A frozen program can't be pickled, exported,
            loaded into, or converted to another number format or device. It may also return 0 for
            NaN where torch has fused a ReLU into a convolution.
        compiled: whether to try frozen ``torch.compile``, which takes up to minutes and also makes
            a frozen program.
        rounds: how often each implementation of the model is timed. Quartiles of the times are
            compared.

    Returns:
        :class:`Condensed`, with ``model`` and ``report``. The deprecated spelling returns only the
        model.

    Raises:
        TypeError: if ``model`` is not a module, or ``masks`` has another type.
        ValueError: if there are no example inputs, a mask does not fit its weight, an argument is
            out of range, or the model or its inputs are on the meta device.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, condense
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.1)
        >>> x = torch.randn(1, 64)
        >>> condensed = condense(model, optimizer, example_inputs=x, rounds=1, compiled=False)
        >>> torch.allclose(condensed.model(x), model(x), atol=1e-5)
        True
    """
    check_count("rounds", rounds, minimum=1)
    if precision not in {"same", "fastest"}:
        raise ValueError(f"precision={precision!r} must be 'same' or 'fastest'.")
    if inputs:
        warn_old_spelling(
            "condense(model, optimizer, *inputs)",
            "condense(model, optimizer, example_inputs=inputs).model",
        )
        # The model that 0.1.0 returned could be pickled, and a frozen program can't.
        example_inputs, scripted, compiled = inputs, False, False
    check_model("model", model)
    model = unwrapped(model)
    check_changes_mode("model", model)
    args, kwargs = _arguments(example_inputs, masks)
    check_inputs_have_values("example_inputs", (args, kwargs))
    wanted = {"scripted": scripted, "compiled": compiled}
    programs = {name for name, is_wanted in wanted.items() if is_wanted}
    # A tensor that is made in inference mode can't be written to, or used in autograd, outside it.
    with torch.inference_mode(False), torch.no_grad(), preserve_random_state(model):
        if isinstance(masks, SparseOptimizer):
            masks.materialize()  # before weights are copied
        copied = copy_for_inference(model)
        found = masks_by_name(copied, masks)
        assembly = Assembly(model, copied, found, args, kwargs, programs)
        condensed = _choose(assembly, masks, precision, rounds)
    return condensed.model if inputs else condensed


class Condensation:
    """The spelling of 0.1.0, deprecated: use :func:`condense`.

    Args:
        model: the model.
        optimizer: the optimizer, which has the masks.
        inputs: positional inputs as in inference.
        rounds: how often each implementation is timed.

    Attributes:
        model: the copy for inference.
        report: the times of each layer that has a mask.

    Example:
        >>> import warnings
        >>> import torch
        >>> from sparseopt import Condensation, SparseOptimizer
        >>> model = torch.nn.Linear(16, 4)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.5)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DeprecationWarning)
        ...     condensed = Condensation(model, optimizer, torch.randn(3, 16), rounds=1)
        >>> condensed.model(torch.randn(3, 16)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self, model: nn.Module, optimizer: SparseOptimizer, *inputs: Any, rounds: int = 7
    ) -> None:
        warn_old_spelling(
            "Condensation(model, optimizer, *inputs)",
            "condense(model, optimizer, example_inputs=inputs)",
        )
        if not inputs:
            raise ValueError("Condensation needs inputs to time the layers with: pass a batch.")
        condensed = condense(
            model, optimizer, example_inputs=inputs, rounds=rounds, scripted=False, compiled=False
        )
        self.model: nn.Module = condensed.model
        self.report: list[LayerTimes] = condensed.report.layers


def _arguments(example_inputs: Any, masks: Masks) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword inputs, as given or in the shapes of a training step."""
    if example_inputs is None:
        known = masks.example_inputs() if isinstance(masks, SparseOptimizer) else None
        if known is None:
            raise ValueError(
                "example_inputs=None: condense() needs inputs to time the model with. Pass a "
                "batch, or pass an optimizer that was created with the model and has made a "
                "training step."
            )
        numbers: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(_random_numbers, known)
        return numbers
    return as_arguments(example_inputs)


def _random_numbers(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    noise = normal(value.shape, torch.Generator().manual_seed(0))
    return noise.to(value.device, value.dtype)


def _choose(assembly: Assembly, masks: Masks, precision: Precision, rounds: int) -> Condensed:
    """Time all implementations of the model, and return the fastest one."""
    tried = assembly.formats()
    # A model may run in float32 and fail in bfloat16.
    formats = [one for one in tried if AS_IT_IS in one.implementations]
    times = _time(assembly, formats, rounds)
    winners = [_winner(one, times) for one in formats]
    chosen = 0
    if precision == "fastest" and len(formats) == 2:
        keys = [f"{name}, {one.name}" for name, one in zip(winners, formats, strict=True)]
        chosen = int(times[keys[1]].over(times[keys[0]]).q3 < 1)
    form, implementation = formats[chosen], winners[chosen]
    failed = {f"{name}, {one.name}": why for one in tried for name, why in one.failed.items()}
    if assembly.untraced is not None:
        failed["folding"] = f"the model can't be traced ({assembly.untraced})"
    if not assembly.masks:
        failed[SPARSE] = "the masks drop no weight" + (
            " (no weight of two or more dimensions has a zero)" if masks == "nonzero" else ""
        )
    layers = form.layers.get(implementation)
    if layers is None:
        layers = [_left_dense(one) for one in form.layers[SPARSE]]
    report = CondensationReport(implementation, form.name, times, layers, failed)
    return Condensed(form.implementations[implementation].eval(), report)


def _time(assembly: Assembly, formats: list[Format], rounds: int) -> dict[str, Timing]:
    calls = {
        f"{implementation}, {form.name}": _call(module, assembly)
        for form in formats
        for implementation, module in form.implementations.items()
    }
    with ExitStack() as stack:
        if assembly.skipped_by_trace is not None:
            # forward() writes to buffers, such as a counter of its calls.
            for form in formats:
                for module in form.implementations.values():
                    stack.enter_context(preserve_buffers(module))
                    stack.enter_context(preserve_attributes(module))
        return time_in_turn(
            calls,
            rounds=rounds,
            device=assembly.device,
            warmup=_WARMUP,
            shortest=_LONG_ENOUGH,
            clock=clock_of(assembly.device),
        )


def _call(module: nn.Module, assembly: Assembly) -> Any:
    """Return a call on the example inputs, or on a new copy each time if the model changes them."""
    once = assembly.inputs()

    def call() -> None:
        args, kwargs = assembly.inputs() if assembly.writes_inputs else once
        module(*args, **kwargs)

    return call


def _winner(form: Format, times: Mapping[str, Timing]) -> str:
    """Return the fastest implementation.

    From the model as it is, to the fastest dense implementation, to the fastest sparse one, each
    step is taken only if the gain exceeds the spread of the measurement.
    """
    sparse = [name for name in form.implementations if name in form.layers]
    dense = [name for name in form.implementations if name not in form.layers]
    of = {name: times[f"{name}, {form.name}"] for name in form.implementations}
    best = _faster(of, dense, AS_IT_IS)
    return _faster(of, sparse, best)


def _faster(times: Mapping[str, Timing], implementations: list[str], base: str) -> str:
    """Return the fastest implementation if it is faster than ``base`` in 3 of 4 rounds."""
    best = min([*implementations, base], key=lambda implementation: times[implementation].median)
    return best if times[best].over(times[base]).q3 < 1 else base


def _left_dense(times: LayerTimes) -> LayerTimes:
    reason = times.obstacle or "the model is faster with all layers dense"
    return LayerTimes(times.name, times.density, times.shape, times.seconds, "dense", reason)
