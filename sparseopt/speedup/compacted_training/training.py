"""``CompactedTraining``: the smaller model between mask updates, the full model in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseopt.distributed.ranks import is_distributed
from sparseopt.methods import RigLStruct
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.optimizer.state import LiveState
from sparseopt.speedup.compacted_training.parameter_swap import ParameterSwap
from sparseopt.speedup.compacted_training.state import CompactedBackend
from sparseopt.speedup.compaction.recorded import recorded_inputs
from sparseopt.speedup.compaction.surgery import Kept
from sparseopt.speedup.compaction.written_numbers import (
    Attribute,
    attributes_to_change,
    new_numbers,
    only,
)
from sparseopt.speedup.equivalence import Agreement
from sparseopt.structured import ChannelGroup
from sparseopt.structured.channel_groups import MAKERS
from sparseopt.structured.channel_masks import live_channels
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.example_inputs import as_arguments, with_old_inputs
from sparseopt.utils.hooks import CallWithoutArguments
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["CompactedTraining"]


class CompactedTraining:
    """Trains a model without its dropped channels between mask updates.

    The training loop does not change. Between updates the modules of ``model`` have smaller
    parameters, which ``optimizer`` steps. Before the forward pass of an update step the full
    parameters are swapped in again, with weights, gradients, statistics and optimizer state.
    Training computes the same, except for rounding (dropout draws other numbers).

    The full model is restored for state dicts of model and optimizer, for copies of the optimizer,
    for :meth:`SparseOptimizer.flops` and :func:`compact`, and after the ``with`` block. For
    anything else that needs the full model, such as an average of its weights, or a copy of the
    model together with the optimizer, call :meth:`restore`. A copy of the model alone is a smaller
    model. After each swap ``model.parameters()`` and ``optimizer.param_groups`` contain other
    objects, so read them at each step. The weights of ``optimizer.layers`` have the values from
    when the model was last full.

    Args:
        model: the model that ``optimizer`` trains; ``torch.compile`` may have wrapped it.
        optimizer: of ``method="rigl-struct"``, with live state, in one process.
        inputs: the spelling of 0.1.0 for positional example inputs, deprecated.
        example_inputs: inputs of the model, the batch first, on which both models are compared
            once: a tensor, a tuple of positional inputs, a mapping of keyword inputs, or a pair of
            both. By default the inputs of the first training step, with random numbers for
            floating-point numbers. Then the model becomes smaller after that step.
        keywords: the spelling of 0.1.0 for keyword example inputs, deprecated.

    Raises:
        TypeError: if the method drops anything but entire channels, or observes every step, or if
            inputs are given twice.
        ValueError: if the optimizer has no live state, trains another model, or lacks a trainable
            parameter that would become smaller, if there are several processes, or if the model is
            in DistributedDataParallel, sped up by :func:`speed_up`, or in another
            CompactedTraining, or does not run on random numbers in the recorded shapes.
        CompactionError: if the smaller model does not run or does not compute the same.

    Example:
        >>> import torch
        >>> from sparseopt import (
        ...     CompactedTraining, RigLStruct, SparseOptimizer, find_channel_groups)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Flatten(), torch.nn.Linear(8 * 4, 10))
        >>> x = torch.randn(2, 3, 4, 4)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, density=0.5, total_steps=20,
        ...     method=RigLStruct(groups=find_channel_groups(model, x)), delta_t=5)
        >>> with CompactedTraining(model, optimizer):
        ...     for step in range(12):
        ...         optimizer.zero_grad()
        ...         model(x).square().mean().backward()
        ...         optimizer.step()
        ...     print(model[0])
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)
        >>> print(model[0])
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), bias=False)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: SparseOptimizer,
        *inputs: Any,
        example_inputs: Any = None,
        **keywords: Any,
    ) -> None:
        example_inputs = with_old_inputs(
            example_inputs,
            inputs,
            keywords,
            old="CompactedTraining(model, optimizer, *inputs, **keywords)",
            new="CompactedTraining(model, optimizer, example_inputs=(inputs, keywords))",
        )
        _refuse_data_parallel(model, optimizer)
        self._model = unwrapped(model)
        self._optimizer = optimizer
        self._groups = _groups_of(self._model, optimizer)
        _refuse_untrained(self._model, optimizer, self._kept())
        self._inputs = None if example_inputs is None else as_arguments(example_inputs)
        self._tensors = ParameterSwap(self._model)
        #: The attributes that are numbers of heads or the like; ``None`` before the first check.
        self._changing: frozenset[Attribute] | None = None
        self._mark = _InUse()
        optimizer.hold(self._mark)
        self._handles = [
            optimizer.register_step_post_hook(lambda *_: self._prepare_next_step()),
            *_before_state_dicts(self._model, CallWithoutArguments(self.restore)),
        ]
        if self._inputs or optimizer.example_inputs() is not None:
            self._prepare_next_step()

    def __enter__(self) -> CompactedTraining:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def is_full(self) -> bool:
        """Whether model and optimizer have all channels now."""
        return not isinstance(self._optimizer.backend, CompactedBackend)

    def restore(self) -> None:
        """Restore all channels of model and optimizer, until the next ``step()`` has ended.

        Do not call it between a forward pass and its ``backward()``.
        """
        self._tensors.swap_out()
        backend = self._optimizer.backend
        if isinstance(backend, CompactedBackend):
            backend.swap_out()
            self._optimizer.use_backend(backend.full)

    @property
    def is_whole(self) -> bool:
        """The spelling of 0.1.0 for :attr:`is_full`, deprecated."""
        warn_old_spelling("CompactedTraining.is_whole", "CompactedTraining.is_full")
        return self.is_full

    def whole(self) -> None:
        """The spelling of 0.1.0 for :meth:`restore`, deprecated."""
        warn_old_spelling("CompactedTraining.whole()", "CompactedTraining.restore()")
        self.restore()

    def end(self) -> None:
        """Restore all channels for good; leaving the ``with`` block does the same."""
        try:
            self.restore()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._optimizer.release(self._mark)

    def _prepare_next_step(self) -> None:
        """Swap in the full or the smaller parameters, whichever the next step needs."""
        if self._optimizer.is_update_step:
            self.restore()
        elif self.is_full:
            kept = self._kept()
            _refuse_untrained(self._model, self._optimizer, kept)
            if self._changing is None:
                self._make_smaller_and_check(kept)
            else:
                self._make_smaller(kept, self._changing)

    def _make_smaller(self, kept: Kept, changing: Collection[Attribute]) -> None:
        """Swap the smaller parameters into model and optimizer.

        Numbers in the model's code, such as numbers of heads, get new values in the attributes
        ``changing``.

        Invariant: after an error, model and optimizer are full again.
        """
        numbers = only(self._model, new_numbers(self._model, self._groups, kept), changing)
        full = self._optimizer.backend
        assert isinstance(full, LiveState)
        try:
            smaller = CompactedBackend(full, self._tensors.swap_in(kept, numbers), self.restore)
            self._optimizer.use_backend(smaller)
            smaller.swap_in()
        except BaseException:
            self.restore()
            raise

    def _make_smaller_and_check(self, kept: Kept) -> None:
        """Swap the smaller parameters in, and compare both models once, in evaluation mode.

        Evaluation mode has no random numbers. The comparison finds the attributes that change.
        """
        try:
            args, kwargs = self._inputs or recorded_inputs(self._model, self._optimizer)
            agreement = Agreement(self._model, args, kwargs)
            numbers = new_numbers(self._model, self._groups, kept)
            self._make_smaller(kept, ())
            self._changing = attributes_to_change(
                self._model, numbers, lambda: agreement.check(self._model)
            )
            if self._changing:
                self.restore()
                self._make_smaller(kept, self._changing)
        except BaseException:
            self.end()
            raise

    def _kept(self) -> Kept:
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        shapes = {canonical_name(name): tensor.shape for name, tensor in tensors}
        return _kept(self._groups, self._optimizer.masks, shapes)


def _refuse_data_parallel(model: nn.Module, optimizer: SparseOptimizer) -> None:
    roots = [root for root in (model, optimizer.model) if root is not None]
    modules = [module for root in roots for module in root.modules()]
    if is_distributed():
        what = "there are several processes"
    elif any(isinstance(one, nn.parallel.DistributedDataParallel) for one in modules):
        what = "the model is in DistributedDataParallel"
    else:
        return
    raise ValueError(
        f"{what}, and data parallel training keeps the parameters that the model had at first: "
        "train the full model there, or train without DistributedDataParallel in a single process."
    )


def _groups_of(model: nn.Module, optimizer: SparseOptimizer) -> Sequence[ChannelGroup]:
    """Return the channels that can be dropped."""
    method = optimizer.method
    if not isinstance(method, RigLStruct):
        raise TypeError(
            f"method={method.name!r} does not drop entire channels between steps, so no smaller "
            "model could be trained: use method='rigl-struct' with example_inputs=."
        )
    if method.has_observer or method.memory is not None:
        raise TypeError(
            f"method={method.name!r} reads the gradients of all weights between updates, and the "
            "smaller model does not have all: train without CompactedTraining."
        )
    if not isinstance(optimizer.backend, LiveState):
        raise ValueError(
            f"optimizer={type(optimizer.inner).__name__} has dense state here, or is in a "
            "CompactedTraining already: it needs live state, which element-wise optimizers "
            "have with state='auto'."
        )
    parameters = {canonical_name(name): value for name, value in model.named_parameters()}
    for layer in optimizer.layers:
        if parameters.get(layer.name) is not layer.weight:
            raise ValueError(
                f"model={type(model).__name__}(...) is not the model that the optimizer trains: "
                f"its {layer.name!r} is another parameter."
            )
    return method.groups


def _refuse_untrained(model: nn.Module, optimizer: SparseOptimizer, kept: Kept) -> None:
    """Raise if a parameter that would be cut may be trained by another optimizer."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if canonical_name(name) in kept and parameter.requires_grad and parameter not in trained:
            raise ValueError(
                f"parameter {name!r} would become smaller, but is not in this optimizer: its own "
                "optimizer would go on with the full parameter, which the model no longer has. Put "
                "it into this optimizer, in a param group with density=False if it shall have no "
                "mask, or freeze it with requires_grad_(False)."
            )


def _kept(
    groups: Sequence[ChannelGroup], masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> Kept:
    """Return the live positions of each tensor in which dropped channels own entries, by name."""
    stays: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        made = group.slices_of(*MAKERS)
        if not made or made[0].name not in masks:
            continue
        live = live_channels(group, masks)
        if bool(live.all()):
            continue
        for place in group.slices:
            if place.name not in shapes:
                continue
            # A weight that reads a concatenation has columns of several groups in one dimension.
            along = stays.setdefault(place.name, {})
            if place.dim not in along:
                size = shapes[place.name][place.dim]
                along[place.dim] = torch.ones(size, dtype=torch.bool, device="cpu")
            along[place.dim][place.index[~live]] = False
    return {
        name: {dim: flags.nonzero()[:, 0] for dim, flags in dims.items()}
        for name, dims in stays.items()
    }


class _InUse:
    """Marks the model as in use. ``remove`` has no work: ``detach()`` restores the full model."""

    name = "CompactedTraining"

    def remove(self) -> None:
        pass

    def masks_changed(self) -> None:
        pass


def _before_state_dicts(model: nn.Module, hook: Callable[..., None]) -> list[RemovableHandle]:
    handles: list[RemovableHandle] = []
    for module in model.modules():
        handles += [
            module.register_state_dict_pre_hook(hook),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(hook),  # type: ignore[no-untyped-call]
        ]
    return handles
