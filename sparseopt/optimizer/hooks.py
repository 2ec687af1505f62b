"""The hooks of a sparse optimizer on the model and its weights, and their removal."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer, follow_weights
from sparseopt.optimizer.gradients import (
    GradientFlag,
    are_finite,
    mask_gradient_of,
    owners_of,
    reregister_hooks,
)
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.replaced_parameters import (
    ParameterSlots,
    before_first_forward,
    may_be_sharded_later,
)
from sparseopt.utils.compile import disable_dynamo, outside_of_tracing
from sparseopt.utils.hooks import CallWithoutArguments, Handle, WeakHook, call_before_forward
from sparseopt.utils.recorded_inputs import InputRecorder
from sparseopt.utils.wrappers import unwrapped

__all__ = ["Holder", "ModelHooks", "detach_previous_wrapper"]

#: For every inner optimizer that is wrapped, the hooks of its wrapper.
_hooks_of: weakref.WeakKeyDictionary[Optimizer, weakref.ref[ModelHooks]] = (
    weakref.WeakKeyDictionary()
)


class Holder(Protocol):
    """An object that swaps parts of a model for a while; it must not refer to the optimizer."""

    @property
    def name(self) -> str:
        """The name of the object in errors."""

    def remove(self) -> None:
        """Swap the parts back."""

    def masks_changed(self) -> None:
        """Follow the masks, which may have changed."""


class ModelHooks:
    """The hooks of one sparse optimizer, until they are removed or it is garbage-collected.

    Args:
        optimizer: the sparse optimizer; the hooks hold it weakly.
        updater: the mask updater, which prepares forward passes if its method needs that. The
            removal undoes a preparation and makes the state of the inner optimizer dense.
        recorder: the recorder of inputs, if there is one; its hook is removed too.

    Attributes:
        flag: whether the hooks leave gradients dense now.
        masked_elsewhere: the name of a weight that another optimizer masks now, or ``None``.
        holder: the object that swaps parts of the model now; it ends when the hooks are removed.
    """

    def __init__(
        self, optimizer: object, updater: MaskUpdater, recorder: InputRecorder | None
    ) -> None:
        self.flag = GradientFlag()
        self.masked_elsewhere: str | None = None
        self.holder: Holder | None = None
        self._updater = updater
        self._inner = updater.backend.inner
        self._handles: list[Handle] = []
        self._hooked: list[tuple[SparseLayer, int]] = []
        self._slots = ParameterSlots(updater.layers, self._inner.param_groups)
        self._finalizer = weakref.finalize(optimizer, _remove_all, self._handles, updater, recorder)
        self._finalizer.atexit = False
        _hooks_of[self._inner] = weakref.ref(self)

    @property
    def are_removed(self) -> bool:
        """Whether :meth:`remove` was called."""
        return not self._finalizer.alive

    def mask_gradients(self, layers: Sequence[SparseLayer]) -> None:
        """Make ``backward()`` mask the gradients of ``layers``, unless :attr:`flag` is set.

        A dense layer gets a hook too: it may have a mask after a checkpoint is loaded.
        """
        # With differentiable=True a weight need not be a leaf. Then backward() accumulates nothing.
        for layer in layers:
            if layer.weight.is_leaf:
                self._handles.append(mask_gradient_of(layer, self.flag, self))
                self._hooked.append((layer, layer.weight._cdata))

    def add_to_model(self, model: nn.Module, first_forward: Callable[[], Any]) -> None:
        """Register the hooks that run before the model's forward passes and ``state_dict()``.

        Args:
            model: the model.
            first_forward: a method, held weakly, to call once before the next training forward
                pass, if the model may be sharded before that pass.
        """
        if may_be_sharded_later():
            self._handles.append(before_first_forward(model, first_forward))
        if self._updater.method.prepares_forward:
            preparing = _Preparing(self._updater.prepare_forward, self.flag)
            self._handles.append(call_before_forward(model, preparing))
            undoing = CallWithoutArguments(self.undo_preparation)
            # Users also save the module inside DistributedDataParallel.
            inside = unwrapped(model)
            self._handles.append(inside.register_state_dict_pre_hook(undoing))  # type: ignore[no-untyped-call]

    @disable_dynamo
    def undo_preparation(self) -> None:
        """Undo the preparation of a forward pass, unless ``backward()`` still needs the weights."""
        if not self.flag.awaits_backward:
            self._updater.undo_preparation()

    def undo_after_overflow(self, gradients: Callable[[], Sequence[Tensor]]) -> None:
        """Undo the preparation of a step for which ``GradScaler`` did not call ``step()``.

        Finite gradients may come from a graph that is used again, which needs its weights
        unchanged. So nothing is undone for them.

        Args:
            gradients: returns all gradients of the optimizer's parameters.
        """
        if self._updater.is_prepared and not are_finite(gradients()):
            self.undo_preparation()

    def hold(self, holder: Holder) -> None:
        """End ``holder`` when the hooks are removed.

        Raises:
            RuntimeError: if the hooks were removed already.
            ValueError: if there is another holder.
        """
        self.require_attached(f"no {holder.name} can be used with")
        if self.holder is not None:
            raise ValueError(
                f"the optimizer's model is in use by {self.holder.name} already, so {holder.name} "
                f"can't swap parts of it: end {self.holder.name} first."
            )
        self.holder = holder
        self._handles.append(holder)

    def release(self, holder: Holder) -> None:
        """Forget ``holder``, which has ended."""
        if self.holder is holder:
            self.holder = None
            self._handles[:] = [handle for handle in self._handles if handle is not holder]

    def note_layers(self) -> None:
        """Note the updater's new list of layers, and the positions of their weights."""
        layers = self._updater.layers
        self._hooked = [(layer, tensor) for layer, tensor in self._hooked if layer in layers]
        self._slots = ParameterSlots(layers, self._inner.param_groups)

    def follow_weights(self) -> list[tuple[SparseLayer, nn.Parameter]]:
        """Follow weights that were moved, and find weights that a framework has replaced.

        ``model.to(...)`` swaps the tensor of a DTensor's parameter, and of every parameter if torch
        is configured to do so. The hooks stay with the parameter, but have to be registered again.

        Returns:
            Layers whose weight was replaced, each with the parameter that replaced it.
        """
        follow_weights(self._updater.layers)
        for index, (layer, tensor) in enumerate(self._hooked):
            if layer.weight._cdata != tensor:
                reregister_hooks(layer.weight)
                self._hooked[index] = layer, layer.weight._cdata
        return self._slots.replaced(self._inner.param_groups)

    def detach_other_optimizers(self, layers: Sequence[SparseLayer]) -> None:
        """Detach every other optimizer that masks a weight of ``layers``.

        The newest optimizer masks the weight. An older optimizer is detached from all its weights,
        because an optimizer that masks only some of them would train the others without masks.
        """
        for layer in layers:
            for other in owners_of(layer.weight):
                if other is not self:
                    other.detach_for_another(layer.name)

    def detach_for_another(self, name: str) -> None:
        """Remove the hooks: another optimizer masks the weight ``name`` from now on."""
        self.masked_elsewhere = name
        self.remove()

    def require_attached(self, what: str) -> None:
        """Raise :class:`RuntimeError` if the hooks were removed.

        Args:
            what: the action for the message, such as "add the group to".
        """
        if not self.are_removed:
            return
        if self.masked_elsewhere is not None:
            raise RuntimeError(
                f"this SparseOptimizer no longer masks {self.masked_elsewhere!r}: another "
                "SparseOptimizer, made later, masks this weight, so this SparseOptimizer is "
                "detached. Train with the other one, or make a new one."
            )
        raise RuntimeError(f"this SparseOptimizer was detached: {what} its inner optimizer.")

    def remove_for_replacement(self) -> None:
        """Remove the hooks so that others can replace them; the state stays as it is."""
        self._finalizer.detach()
        self._hooked.clear()
        _remove(self._handles)

    def remove(self) -> None:
        """Remove the hooks and make the inner optimizer's state dense; only the first call acts."""
        self._hooked.clear()
        self._finalizer()
        self.holder = None


class _Preparing(WeakHook):
    """Calls a method with the model before each training forward pass.

    It does not do so for a pass without gradients, in evaluation mode or for an export.

    Args:
        prepare: the method.
        flag: notes that ``backward()`` will need the weights of this pass.
    """

    def __init__(self, prepare: Callable[..., Any], flag: GradientFlag) -> None:
        super().__init__(prepare)
        self._flag = flag

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_flag": GradientFlag()}

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # An exported or traced graph must describe the unprepared model.
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            return
        if module.training and torch.is_grad_enabled():
            self._prepare(module)

    @disable_dynamo
    def _prepare(self, module: nn.Module) -> None:
        self._flag.awaits_backward = True
        self.act(module)


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
    # remove() of a holder takes the holder out of the list, so the loop needs a copy.
    for handle in list(handles):
        handle.remove()
    handles.clear()
