"""The FLOPs of a model: with given masks, or with the masks of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.distributions import match_name
from sparseopt.flops.counter import count_operations
from sparseopt.flops.operands import layers_in
from sparseopt.flops.report import FlopsReport, inference_report, make_report, sample_count
from sparseopt.flops.training_cost import TrainingProgress
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.layer_of_weight import layer_of
from sparseopt.methods.base import Method
from sparseopt.utils.example_inputs import as_arguments
from sparseopt.utils.recorded_inputs import InputRecorder
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["Accountant", "count_flops"]


def count_flops(
    model: nn.Module,
    example_inputs: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    samples: int | None = None,
) -> FlopsReport:
    """Return the cost of inference and training under fixed masks, in FLOPs per sample.

    No optimizer is needed. For a training run, :meth:`sparseopt.SparseOptimizer.flops` also counts
    the cost of the method's updates and of the steps so far.

    Args:
        model: the model. Wrappers of data parallel training and of ``torch.compile`` are removed.
            It runs once, in eval mode, and is left as it was.
        example_inputs: an input of the model, with the batch first: one value, a tuple of
            positional arguments, a mapping of keyword arguments, or a pair of both. A list of
            images inside these is a batch too.
        masks: bool tensors of the weights' shapes, true where live, by the name of the parameter or
            of its module. Weights without a mask count as dense.
        samples: the number of samples in the input, by default its first dimension. Pass it if the
            batch is not first: 8 for an input ``(sequence, 8, features)``.

    Raises:
        TypeError: if a mask is not a bool tensor, or ``samples`` is not a whole number.
        ValueError: if a name is not known or given twice, a mask has another shape than its weight,
            the model uses no weight, or ``samples`` is not positive.

    Example:
        >>> import torch
        >>> from sparseopt import count_flops
        >>> model = torch.nn.Linear(32, 16, bias=False)
        >>> mask = torch.zeros(16, 32, dtype=torch.bool)
        >>> mask[:4] = True
        >>> report = count_flops(model, torch.zeros(1, 32), masks={"weight": mask})
        >>> report.inference_dense, report.inference_sparse, report.density
        (1024.0, 256.0, 0.25)
    """
    model = unwrapped(model)
    args, kwargs = as_arguments(example_inputs)
    checked = _checked_masks(model, masks or {})
    numel = sum(mask.numel() for mask in checked.values())
    live = sum(int(mask.sum()) for mask in checked.values())
    return inference_report(
        count_operations(model, checked, args, kwargs),
        samples=sample_count((args, kwargs), samples),
        density=live / numel if numel else 1.0,
    )


class Accountant:
    """Counts the FLOPs of a model under its masks, and of the training that moved them.

    Args:
        model: the model in training, if the optimizer was given one. The shapes of its first input
            are recorded.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.recorder = None if model is None else InputRecorder(model)

    def report(
        self,
        model: nn.Module | None,
        example_inputs: Any,
        *,
        samples: int | None,
        layers: list[SparseLayer],
        method: Method,
        progress: TrainingProgress,
    ) -> FlopsReport:
        """Return the figures; see :meth:`sparseopt.SparseOptimizer.flops`."""
        model = self.model if model is None else model
        if model is None:
            raise ValueError(
                "flops() needs the model: pass it to flops(model, example_inputs), or to "
                "SparseOptimizer(optimizer, model, ...)."
            )
        model = unwrapped(model)
        recorded = example_inputs is None
        args, kwargs = self._recorded_inputs() if recorded else as_arguments(example_inputs)
        found = layers_in(model, layers)
        masks = {
            **{name: layer.mask for name, layer in found.items()},
            **_masks_of_other_optimizers(model, found),
        }
        with _replay() if recorded else nullcontext():
            operations = count_operations(model, masks, args, kwargs)
        return make_report(
            operations,
            samples=sample_count((args, kwargs), samples),
            found=found,
            layers={layer.name: layer for layer in layers},
            method=method,
            progress=progress,
        )

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the first training input, with zeros for numbers; ``None`` before that input."""
        if self.recorder is None or not self.recorder.has_inputs:
            return None
        return self.recorder.inputs()

    def _recorded_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = self.example_inputs()
        if inputs is None:
            raise ValueError(
                "flops() has no recorded input yet: pass example_inputs=, or call it after the "
                "first training step of an optimizer that was given the model."
            )
        return inputs


@contextmanager
def _replay() -> Iterator[None]:
    """Raise an error that says what to pass if the model does not run with recorded inputs."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            "flops() runs the model with zeros for the floating-point numbers of the first "
            "training input, because their values are not kept. This model does not run with "
            "zeros: pass example_inputs= with values that it takes. It raised "
            f"{type(error).__name__}: {error}"
        ) from error


def _checked_masks(model: nn.Module, masks: Mapping[str, object]) -> dict[str, Tensor]:
    """Return ``masks`` by the canonical name of the parameter; see :func:`count_flops`."""
    parameters = {canonical_name(name): value for name, value in model.named_parameters()}
    checked: dict[str, Tensor] = {}
    for key, mask in masks.items():
        name = match_name("masks", key, parameters)
        if name in checked:
            raise ValueError(
                f"masks has two masks for {name!r}, because {key!r} names this weight too: give "
                "one of them."
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"masks[{key!r}] is {kind}, but must be a bool tensor.")
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f"masks[{key!r}] has shape {tuple(mask.shape)}, but must have the weight's shape "
                f"{tuple(parameters[name].shape)}."
            )
        checked[name] = mask
    return checked


def _masks_of_other_optimizers(
    model: nn.Module, found: Mapping[str, SparseLayer]
) -> dict[str, Tensor]:
    """Return the masks of weights that other optimizers mask, by the parameter's name."""
    masks = {}
    for full_name, parameter in model.named_parameters():
        name = canonical_name(full_name)
        layer = None if name in found else layer_of(parameter)
        if layer is not None:
            masks[name] = layer.mask
    return masks
