"""The hooks of a sparse optimizer on the model and its weights, and their removal."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseopt.flops import Accountant
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods import Method
from sparseopt.optimizer.gradients import (
    GradientGate,
    mask_gradient_of,
    masked_by_another,
    reregister_hooks,
)
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.replaced_parameters import (
    ParameterSlots,
    before_first_forward,
    may_be_sharded_later,
    rebind,
)
from sparseopt.optimizer.state import StateBackend, StateMode, make_backend
from sparseopt.optimizer.wrapper import WrappedOptimizer
from sparseopt.utils.compile import disable_dynamo, outside_of_tracing
from sparseopt.utils.hooks import WeakHook
from sparseopt.utils.recorded_inputs import InputRecorder

__all__ = ["AttachedOptimizer", "before_training_forward", "detach_previous_wrapper"]


def before_training_forward(model: nn.Module, act: Callable[[], Any]) -> RemovableHandle:
    """Call ``act``, a method that is held weakly, before each training forward pass of ``model``.

    A pass without gradients, in evaluation mode or for an export is none.
    """
    return model.register_forward_pre_hook(_Preparing(act))


class _Preparing(WeakHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # A graph that is exported is of the model as it is.
        if module.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self._prepare()

    @disable_dynamo
    def _prepare(self) -> None:
        self.act()


#: By inner optimizer, what hangs onto its weights for it.
_attached: weakref.WeakKeyDictionary[Optimizer, weakref.ref[Attachment]] = (
    weakref.WeakKeyDictionary()
)


class Attachment:
    """Hooks that last until they are taken off, at the latest when the optimizer goes.

    Args:
        optimizer: when it is garbage-collected everything is released.
        updater: what it prepared is undone on release; its store, which keeps the inner optimizer's
            state, makes that dense.
        recorder: its hook goes too, if there is one.
    """

    def __init__(
        self, optimizer: object, updater: MaskUpdater, recorder: InputRecorder | None
    ) -> None:
        self._handles: list[RemovableHandle] = []
        self._hooked: list[tuple[SparseLayer, int]] = []
        self._finalizer = weakref.finalize(optimizer, _release, self._handles, updater, recorder)
        self._finalizer.atexit = False

    @property
    def is_released(self) -> bool:
        """Whether :meth:`release` was called."""
        return not self._finalizer.alive

    def mask_gradients(self, layers: Iterable[SparseLayer], gate: GradientGate) -> None:
        """Have ``backward()`` mask the gradients of ``layers`` while ``gate`` is shut."""
        # With differentiable=True a weight may be no leaf: backward() accumulates nothing in it.
        # A layer that is dense now may have a mask once a checkpoint is loaded.
        for layer in layers:
            if layer.weight.is_leaf:
                self._handles.append(mask_gradient_of(layer, gate))
                self._hooked.append((layer, layer.weight._cdata))

    def follow_swapped(self) -> None:
        """Bring back the hooks of weights into which torch put another tensor, and not its hooks.

        ``model.to(...)`` does so with DTensors, or where it is told to for all parameters.
        """
        for index, (layer, tensor) in enumerate(self._hooked):
            if layer.weight._cdata != tensor:
                reregister_hooks(layer.weight)
                self._hooked[index] = layer, layer.weight._cdata

    def before_first_forward(self, model: nn.Module, act: Callable[[], Any]) -> None:
        """Call ``act``, a method that is held weakly, before the next training forward; once."""
        self._handles.append(before_first_forward(model, act))

    def before_training_forward(self, model: nn.Module, act: Callable[[], Any]) -> None:
        """Call ``act``, a method that is held weakly, before each training forward pass."""
        self._handles.append(before_training_forward(model, act))

    def take_off(self) -> None:
        """Remove the hooks, to put others in their place; the state stays as it is."""
        self._finalizer.detach()
        self._hooked.clear()
        _remove(self._handles)

    def release(self) -> None:
        """Remove the hooks and give the inner optimizer dense state; once."""
        self._hooked.clear()
        self._finalizer()


def detach_previous_wrapper(inner: Optimizer) -> None:
    """Detach the sparse optimizer that wraps ``inner`` now, if one does: another will."""
    reference = _attached.get(inner)
    attachment = None if reference is None else reference()
    if attachment is not None:
        attachment.release()


class AttachedOptimizer(WrappedOptimizer):
    """An optimizer with hooks on a model and its weights, which it follows to where they go."""

    method: Method
    _model: nn.Module | None
    _layers: list[SparseLayer]
    _state_mode: StateMode
    _store: StateBackend
    _updater: MaskUpdater
    _gate: GradientGate
    _accountant: Accountant
    _is_alone: bool

    def _attach(self) -> None:
        """Prepare for hooks on the model, and for their removal when this object goes."""
        self._is_alone = False
        self._attachment = Attachment(self, self._updater, self._accountant.recorder)
        _attached[self.inner] = weakref.ref(self._attachment)
        self._places = ParameterSlots()
        self._places.note(self._layers, self.inner.param_groups)
        if self._model is not None and may_be_sharded_later():
            self._attachment.before_first_forward(self._model, self._follow_parameters)
        self._attach_preparation()

    def _attach_preparation(self) -> None:
        if self._attachment.is_released:
            return
        if self._model is not None and self.method.prepares_forward:
            self._attachment.before_training_forward(self._model, self._prepare_forward)

    def _prepare_forward(self) -> None:
        assert self._model is not None
        self._updater.prepare_forward(self._model)

    def _follow_parameters(self) -> None:
        """Follow weights to where they are now, and to the parameters that replaced them."""
        for layer in self._layers:
            layer.follow_weight()
        self._attachment.follow_swapped()
        replaced = self._places.replaced(self.inner.param_groups)
        if not replaced:
            return
        self._attachment.take_off()
        self._store.release()
        rebind(replaced, self.inner)
        self._store = make_backend(self._state_mode, self.inner, self._layers)
        self._updater.store = self._store
        self._attach()
        for layer in self._layers:
            self._store.adopt(layer)
        self._attachment.mask_gradients(self._layers, self._gate)

    def _require_alone(self) -> None:
        """Raise :class:`RuntimeError` if another optimizer that lives still masks these weights."""
        for layer in self._layers:
            if masked_by_another(layer):
                raise RuntimeError(
                    f"the weight of sparse layer {layer.name!r} is masked by another "
                    "SparseOptimizer too, so neither sees its gradient: call detach() of the one "
                    "that is not to train it."
                )
        self._is_alone = True

    def _take_over(self, layers: Sequence[SparseLayer]) -> None:
        for layer in layers:
            layer.mask_(layer.weight)
            self._store.adopt(layer)
        self._attachment.mask_gradients(layers, self._gate)
        self._plan_next_step()

    def _plan_next_step(self) -> None:
        self._gate.dense = self._updater.needs_dense_gradients()


def _release(
    handles: list[RemovableHandle], updater: MaskUpdater, recorder: InputRecorder | None
) -> None:
    _remove(handles)
    if recorder is not None:
        recorder.remove()
    with outside_of_tracing():
        updater.undo_preparation()
        updater.store.release()


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
