"""What ``flops()`` asks: the model, an input, and how training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparseopt.flops.counter import count_operations
from sparseopt.flops.operands import layers_in
from sparseopt.flops.report import FlopsReport, make_report, sample_count
from sparseopt.flops.training_cost import TrainingProgress
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.masked_weights import layer_of
from sparseopt.methods.base import Method
from sparseopt.utils.recorded_inputs import InputRecorder
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["Accountant"]


class Accountant:
    """Prices a model under its masks, and the training that made them.

    Args:
        model: the model that training uses, if it is known; its first input is remembered.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model
        self.recorder = None if model is None else InputRecorder(model)

    def report(
        self,
        model: nn.Module | None,
        inputs: tuple[Any, ...],
        *,
        layers: list[SparseLayer],
        method: Method,
        progress: TrainingProgress,
    ) -> FlopsReport:
        """Return the figures; see :meth:`sparseopt.SparseOptimizer.flops`."""
        model = self.model if model is None else model
        if model is None:
            raise ValueError(
                "flops() needs the model: pass it here, flops(model, *inputs), or to "
                "SparseOptimizer(optimizer, model, ...)."
            )
        model = unwrapped(model)
        args, kwargs = (inputs, {}) if inputs else self._recorded_inputs()
        found = layers_in(model, layers)
        masks = {
            **{name: layer.mask for name, layer in found.items()},
            **_masks_of_others(model, found),
        }
        return make_report(
            count_operations(model, masks, args, kwargs),
            samples=sample_count((args, kwargs)),
            found=found,
            layers={layer.name: layer for layer in layers},
            method=method,
            progress=progress,
        )

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return zeros in the shapes of the first training input; ``None`` before there was one."""
        if self.recorder is None or not self.recorder.has_inputs:
            return None
        return self.recorder.inputs()

    def _recorded_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = self.example_inputs()
        if inputs is None:
            raise ValueError(
                "flops() knows no input yet: pass some, flops(model, *inputs), or call it after "
                "the first training step of an optimizer that was given the model."
            )
        return inputs


def _masks_of_others(model: nn.Module, found: Mapping[str, SparseLayer]) -> dict[str, Tensor]:
    """Return the masks of weights that other optimizers mask, by the parameter's name."""
    masks = {}
    for full_name, parameter in model.named_parameters():
        name = canonical_name(full_name)
        layer = None if name in found else layer_of(parameter)
        if layer is not None:
            masks[name] = layer.mask
    return masks
