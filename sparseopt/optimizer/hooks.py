"""The hooks of a sparse optimizer on the model and its weights, and their removal."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer, follow_weights
from sparseopt.optimizer.gradients import (
    GradientFlag,
    mask_gradient_of,
    masked_by_another,
    reregister_hooks,
)
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.replaced_parameters import (
    ParameterSlots,
    before_first_forward,
    may_be_sharded_later,
)
from sparseopt.utils.compile import disable_dynamo, outside_of_tracing
from sparseopt.utils.hooks import Handle, WeakHook, call_before_forward
from sparseopt.utils.recorded_inputs import InputRecorder

__all__ = ["ModelHooks", "detach_previous_wrapper"]

#: For every inner optimizer that is wrapped, the hooks of its wrapper.
_hooks_of: weakref.WeakKeyDictionary[Optimizer, weakref.ref[ModelHooks]] = (
    weakref.WeakKeyDictionary()
)


class ModelHooks:
    """The hooks of one sparse optimizer, until they are removed or it is garbage-collected.

    Args:
        optimizer: the sparse optimizer; the hooks hold it weakly.
        inner: the optimizer that it wraps.
        updater: its preparation of a forward pass is undone on removal, and its backend gives the
            inner optimizer dense state.
        recorder: its hook is removed too, if there is one.

    Attributes:
        flag: whether the hooks leave gradients dense now.
    """

    def __init__(
        self,
        optimizer: object,
        inner: Optimizer,
        updater: MaskUpdater,
        recorder: InputRecorder | None,
    ) -> None:
        self.flag = GradientFlag()
        self._handles: list[Handle] = []
        self._hooked: list[tuple[SparseLayer, int]] = []
        self._slots = ParameterSlots(updater.layers, inner.param_groups)
        self._finalizer = weakref.finalize(optimizer, _remove_all, self._handles, updater, recorder)
        self._finalizer.atexit = False
        _hooks_of[inner] = weakref.ref(self)

    @property
    def are_removed(self) -> bool:
        """Whether :meth:`remove` was called."""
        return not self._finalizer.alive

    def mask_gradients(self, layers: Sequence[SparseLayer]) -> None:
        """Have ``backward()`` mask the gradients of ``layers``, unless :attr:`flag` is set."""
        # With differentiable=True a weight may be no leaf: backward() accumulates nothing in it.
        # A layer that is dense now may have a mask once a checkpoint is loaded.
        for layer in layers:
            if layer.weight.is_leaf:
                self._handles.append(mask_gradient_of(layer, self.flag))
                self._hooked.append((layer, layer.weight._cdata))

    def add_to_model(
        self,
        model: nn.Module,
        *,
        first_forward: Callable[[], Any],
        training_forward: Callable[[], Any] | None,
    ) -> None:
        """Put the hooks on the model that have to run before it does.

        Args:
            model: the model.
            first_forward: a method, held weakly, to call once before the next training forward
                pass, if the model may be sharded until then.
            training_forward: a method, held weakly, to call before each training forward pass.
        """
        if may_be_sharded_later():
            self._handles.append(before_first_forward(model, first_forward))
        if training_forward is not None:
            self._handles.append(call_before_forward(model, _Preparing(training_forward)))

    def note_slots(self, layers: Sequence[SparseLayer], inner: Optimizer) -> None:
        """Note where in the param groups the weights of ``layers`` are now."""
        self._slots = ParameterSlots(layers, inner.param_groups)

    def follow_weights(
        self, layers: Sequence[SparseLayer], inner: Optimizer
    ) -> list[tuple[SparseLayer, nn.Parameter]]:
        """Follow weights that were moved, and find those that a framework has replaced.

        ``model.to(...)`` puts another tensor into a DTensor's parameter, and into any parameter
        where torch is told to; the hooks stay with the parameter, but have to be registered again.

        Returns:
            Layers whose weight was replaced, each with the parameter that took its place.
        """
        follow_weights(layers)
        for index, (layer, tensor) in enumerate(self._hooked):
            if layer.weight._cdata != tensor:
                reregister_hooks(layer.weight)
                self._hooked[index] = layer, layer.weight._cdata
        return self._slots.replaced(inner.param_groups)

    def require_alone(self) -> None:
        """Raise :class:`RuntimeError` if another optimizer that lives still masks these weights."""
        for layer, _ in self._hooked:
            if masked_by_another(layer):
                raise RuntimeError(
                    f"the weight of sparse layer {layer.name!r} is masked by another "
                    "SparseOptimizer too, so neither sees its gradient: call detach() of the one "
                    "that is not to train it."
                )

    def remove_for_replacement(self) -> None:
        """Remove the hooks, to put others in their place; the state stays as it is."""
        self._finalizer.detach()
        self._hooked.clear()
        _remove(self._handles)

    def remove(self) -> None:
        """Remove the hooks and give the inner optimizer dense state; once."""
        self._hooked.clear()
        self._finalizer()


class _Preparing(WeakHook):
    """Calls a method before each training forward pass.

    A pass without gradients, in evaluation mode or for an export does not count.
    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # A graph that is exported or traced is of the model as it is.
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            return
        if module.training and torch.is_grad_enabled():
            self._prepare()

    @disable_dynamo
    def _prepare(self) -> None:
        self.act()


def detach_previous_wrapper(inner: Optimizer) -> None:
    """Remove the hooks of the sparse optimizer that wraps ``inner`` now, if one does."""
    reference = _hooks_of.get(inner)
    hooks = None if reference is None else reference()
    if hooks is not None:
        hooks.remove()


def _remove_all(
    handles: list[Handle], updater: MaskUpdater, recorder: InputRecorder | None
) -> None:
    _remove(handles)
    if recorder is not None:
        recorder.remove()
    with outside_of_tracing():
        updater.undo_preparation()
        updater.backend.to_dense()


def _remove(handles: list[Handle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
