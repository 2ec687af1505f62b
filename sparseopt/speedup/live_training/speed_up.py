"""``speed_up``: the same training loop, on live weights only."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparseopt.distributed.dtensor import placement
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels.ops import plain_call
from sparseopt.speedup.live_training.exchange import ModelExchange
from sparseopt.speedup.live_training.layout import out_of_kernel_layout
from sparseopt.speedup.live_training.measurement import Measured, measure
from sparseopt.speedup.live_training.modules import Exchanged
from sparseopt.speedup.live_training.plan import Plan, check_plan
from sparseopt.speedup.live_training.possible import (
    exchangeable_layers,
    possible_implementations,
)
from sparseopt.speedup.live_training.report import report_text
from sparseopt.utils.hooks import Handle, OwnHook, call_after_forward
from sparseopt.utils.wrappers import canonical_name, unwrapped

__all__ = ["SpeedUp", "speed_up"]

logger = logging.getLogger("sparseopt")

#: For at most this many shapes of the model's inputs the choice is measured. Other shapes use the
#: choice of the nearest.
_MOST_SHAPES: Final = 4
#: When the number of live weights has changed by this factor, the choice is measured again.
_MUCH: Final = 1.5
#: After this many shapes, the count of shapes starts again.
_MOST_COUNTED: Final = 256


def speed_up(
    model: nn.Module, optimizer: SparseOptimizer, plan: Mapping[str, Any] | None = None
) -> SpeedUp:
    """Run forward and backward passes on live weights only, wherever that is faster here.

    The training loop, the parameters, state dicts, hooks and checkpoints do not change. Training
    computes the same, except for rounding (dropout draws other numbers). Convolutions, linear
    layers and the modules between them are computed by kernels for CPUs, which leave out dropped
    weights and use a memory layout of their own.

    The first training pass of ``model`` times passes of a copy, unchanged and with other
    implementations. Up to three other shapes of the inputs are timed too. A layer stays dense
    unless another implementation is faster by more than the spread of the measurement. The
    measurement is repeated when the number of live weights has changed by a factor of 1.5, as in
    training that begins with all weights. On a GPU, and on machines without kernels, everything
    stays dense, and one line of the log says so.

    If the method reads gradients of dropped weights on a step, the whole step runs dense. A layer
    also runs dense while it has weights that are not live and not zero.

    Args:
        model: the model that ``optimizer`` trains; DistributedDataParallel or ``torch.compile``
            may have wrapped it.
        optimizer: its sparse optimizer.
        plan: :attr:`SpeedUp.plan` of an earlier run, to make the same choice without a measurement.
            By default the choice is measured.

    Returns:
        A handle with the choice, which can end the speed-up. You need not keep it.

        The speed-up lasts until ``undo()`` of the handle, or until ``optimizer`` is detached or
        garbage-collected.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``optimizer`` trains another model, if the model is sharded over processes
            (FSDP2, tensor parallel), if it is sped up or in :class:`CompactedTraining` already, or
            if the plan does not fit it.
        RuntimeError: if ``optimizer`` was detached.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, speed_up
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, total_steps=1000)
        >>> with speed_up(model, optimizer) as handle:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(32, 64)).square().mean().backward()
        ...         optimizer.step()
        ...     plan = handle.plan  # for the next run
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be the torch.nn.Module that the optimizer trains.")
    if not isinstance(optimizer, SparseOptimizer):
        raise TypeError(f"optimizer={optimizer!r} must be a SparseOptimizer.")
    inside = unwrapped(model)
    layers = _layers_of(inside, optimizer)
    possible = {
        name: possible_implementations(module)
        for name, module in exchangeable_layers(inside).items()
    }
    checked = None if plan is None else check_plan(plan, possible)
    handle = SpeedUp(inside, optimizer, layers, checked)
    optimizer.hold(handle)
    try:
        handle._start(optimizer)
    except BaseException:
        handle.undo()
        raise
    return handle


class SpeedUp:
    """The result of :func:`speed_up`: it has the choice and its reasons, and can end the speed-up.

    It is a context manager; the speed-up ends with the ``with`` block.

    Args:
        model: the model, without wrappers.
        optimizer: its sparse optimizer.
        layers: the sparse layers, by name of the module.
        plan: the implementation of each layer; ``None`` to measure.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer, speed_up
        >>> model = torch.nn.Linear(64, 64)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model, total_steps=1000)
        >>> handle = speed_up(model, optimizer)
        >>> handle.plan
        {}
        >>> handle.undo()
        >>> handle.is_active
        False
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: SparseOptimizer,
        layers: Mapping[str, SparseLayer],
        plan: Plan | None,
    ) -> None:
        self.name = "speed_up"
        self._model = model
        # A weak reference, so that the optimizer can be garbage-collected.
        self._optimizer = weakref.ref(optimizer)
        self._layers = layers
        self._flag = optimizer.gradient_flag
        self._exchange = ModelExchange(model, layers, self._flag)
        self._is_given = plan is not None
        self._plan: Plan = {} if plan is None else plan
        self._measured: dict[Any, Measured] = {}
        self._failed: set[Any] = set()
        self._live = 0
        self._counts: Counter[Any] = Counter()
        self._states: dict[SparseLayer, Any] = {}
        self._handles: list[Handle] = []
        self._status = "nothing is measured yet: the model has made no training pass"
        self._is_active = False

    def __enter__(self) -> SpeedUp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<SpeedUp: {self._status}>"

    @property
    def is_active(self) -> bool:
        """Whether the speed-up has not ended."""
        return self._is_active

    @property
    def plan(self) -> Plan:
        """The implementation of each layer, by its name and the shape of its input, for JSON.

        Layers that are not in it are computed by torch, and so is ``"dense"``. ``"live"`` means
        live weights only. ``"full"``, ``"product"`` and ``"converted"`` are implementations of a
        convolution with all its weights, for maps in the kernels' layout.
        """
        return {name: dict(choices) for name, choices in self._plan.items()}

    @property
    def report(self) -> str:
        """The times and the choice with its reasons, for the full model and in a table by layer."""
        optimizer = self._optimizer()
        known = set(self._layers.values())
        unknown = [
            layer.name
            for layer in (() if optimizer is None else optimizer.layers)
            if layer not in known and not layer.is_dense
        ]
        return report_text(self._status, self._plan, list(self._measured.values()), unknown)

    def measure(self, *args: Any, **kwargs: Any) -> None:
        """Measure now, as at the first training pass of the model.

        Use it for models under ``torch.compile``, whose passes are not measured, or to choose the
        time of the measurement. Call it in the autocast mode of training. It does nothing if
        training stays dense, if a plan was passed, or if these shapes were measured already.

        Args:
            *args: positional inputs of the model, as in training.
            **kwargs: keyword inputs.

        Raises:
            RuntimeError: if the speed-up has ended.

        Example:
            >>> import torch
            >>> from sparseopt import SparseOptimizer, speed_up
            >>> model = torch.nn.Linear(64, 64)
            >>> optimizer = SparseOptimizer(
            ...     torch.optim.SGD(model.parameters(), lr=0.1), model, total_steps=1000)
            >>> with speed_up(model, optimizer) as handle:
            ...     handle.measure(torch.randn(32, 64))
            ...     compiled = torch.compile(model)
        """
        if not self._is_active:
            raise RuntimeError("the speed-up has ended: call speed_up() again to measure.")
        if not self._handles or self._is_given or self._flag.dense_gradients:
            return
        self._forget_other_densities()
        key = _shapes((args, kwargs))
        if key not in self._measured and key not in self._failed:
            self._measure(key, args, kwargs)

    def undo(self) -> None:
        """End the speed-up and restore the model; do nothing if it has ended already."""
        self.remove()
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer.release(self)

    def remove(self) -> None:
        """End the speed-up, when the optimizer is detached; users call :meth:`undo`."""
        if not self._is_active:
            return
        self._is_active = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._exchange.end()
        self._states = {}
        self._flag.knows_masked = None
        self._status = "ended: the model computes as before"

    def masks_changed(self) -> None:
        """List the live weights of new masks for compiled code; the optimizer calls this."""
        if self._is_active:
            self._exchange.refresh()

    def _start(self, optimizer: SparseOptimizer) -> None:
        """Register hooks on optimizer and model, and apply the plan if one was passed.

        If no kernel can run, training stays dense, and a log line says why.
        """
        self._is_active = True
        reason = kernels.why_not()
        if reason is not None:
            self._stay_dense(f"training stays dense, without the sparse kernels: {reason}")
            return
        if any(parameter.device.type != "cpu" for parameter in self._model.parameters()):
            self._stay_dense("training stays dense: there are sparse kernels for CPUs only")
            return
        self._flag.knows_masked = weakref.WeakMethod(self._knows_masked)
        self._handles = [call_after_forward(self._model, _AfterForward())]
        if self._is_given:
            self._apply()
            self._status = "as in the plan that was passed"
            return
        if self._flag.dense_gradients and optimizer.method.always_reads_dense_gradient:
            self._status = (
                f"training stays dense as long as method={optimizer.method.name!r} reads the "
                "gradients of all weights at every step"
            )
        before_forward = _BeforeForward(self)
        self._handles.append(
            self._model.register_forward_pre_hook(before_forward, with_kwargs=True)
        )

    def _stay_dense(self, status: str) -> None:
        self._status = status
        logger.warning("speed_up: %s", status)

    def _before_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure before the model's pass, if inputs of these shapes have to be measured."""
        if self._flag.dense_gradients or not plain_call((*args, *kwargs.values())):
            return
        self._forget_other_densities()
        key = _shapes((args, kwargs))
        if key in self._measured or key in self._failed:
            return
        if len(self._measured) + len(self._failed) >= _MOST_SHAPES:
            return
        if len(self._counts) >= _MOST_COUNTED:
            self._counts.clear()
        self._counts[key] += 1
        # A shape that is seen once may be the smaller last batch of an epoch: wait for a second.
        if self._measured and self._counts[key] < 2:
            return
        self._measure(key, args, kwargs)
        self._exchange.continue_pass()

    def _forget_other_densities(self) -> None:
        """Discard measurements if live counts have changed by much since, as in pruning."""
        live = sum(layer.live for layer in self._layers.values())
        if self._measured and not self._live / _MUCH < live < self._live * _MUCH:
            self._measured, self._failed, self._plan = {}, set(), {}
            self._counts.clear()
        if not self._measured:
            self._live = live

    def _measure(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the model for inputs of these shapes, and apply what is fastest.

        The model is dense while a copy of it is measured. If measuring fails, training goes on
        dense for these shapes: an error of the copy must not end the training.
        """
        self._exchange.end()
        try:
            with torch.enable_grad():
                measured = measure(self._model, self._layers, args, kwargs)
        except Exception as error:
            # The code of a model may raise anything in a copy.
            self._failed.add(key)
            if not self._measured:
                self._stay_dense(f"training stays dense: measuring failed ({error})")
        else:
            self._measured[key] = measured
            for name, choices in _with_dense(measured).items():
                self._plan.setdefault(name, {}).update(choices)
            self._status = "as measured on this machine"
        finally:
            self._apply()

    def _apply(self) -> None:
        self._exchange.apply(self._plan)
        self._states = self._exchange.states()
        self._exchange.refresh()

    def _knows_masked(self, layer: SparseLayer, gradient: Tensor) -> bool:
        state = self._states.get(layer)
        return state is not None and state.is_masked(gradient)


class _BeforeForward(OwnHook):
    """Calls the speed-up before each training pass; in a copy of the model it does nothing."""

    def __init__(self, handle: SpeedUp) -> None:
        self._handle: weakref.ref[SpeedUp] | None = weakref.ref(handle)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not module.training or not torch.is_grad_enabled():
            return
        # A pass that backward() repeats (activation checkpointing) must be computed as before.
        if torch._C._current_graph_task_id() != -1:
            return
        handle = None if self._handle is None else self._handle()
        if handle is not None:
            handle._before_forward(args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"_handle": None}


class _AfterForward(OwnHook):
    """Makes the maps contiguous that the model returns in the kernels' layout."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        # torch would compile this hook alone, and warn about the .grad of the outputs.
        return None if torch.compiler.is_compiling() else out_of_kernel_layout(outputs)


def _layers_of(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, SparseLayer]:
    """Return the optimizer's layers, by name of the module with the weight.

    Raises:
        ValueError: if the model can't be sped up with this optimizer.
    """
    kind = type(model).__name__
    # A holder such as CompactedTraining may have swapped other weights into the model.
    if optimizer.holder is not None:
        raise ValueError(
            f"the optimizer's model is in use by {optimizer.holder.name} already: call undo() "
            "(speed_up) or restore() (CompactedTraining) on the object that it returned first."
        )
    if any(isinstance(module, Exchanged) for module in model.modules()):
        raise ValueError(
            f"model={kind}(...) is sped up already, with another optimizer: end that speed-up "
            "first."
        )
    if any(placement(parameter) is not None for parameter in model.parameters()):
        raise ValueError(
            f"model={kind}(...) has weights that are sharded over processes (FSDP2 or tensor "
            "parallel), and the kernels need full weights: use DistributedDataParallel."
        )
    parameters = {canonical_name(name): value for name, value in model.named_parameters()}
    owned = set(map(id, parameters.values()))
    for layer in optimizer.layers:
        if id(layer.weight) not in owned:
            raise ValueError(
                f"model={kind}(...) is not the model that the optimizer trains: it does not have "
                f"the weight {layer.name!r}."
            )
    layer_of = {id(layer.weight): layer for layer in optimizer.layers}
    return {
        name: layer_of[id(module.weight)]
        for name, module in exchangeable_layers(model).items()
        if id(module.weight) in layer_of
    }


def _with_dense(measured: Measured) -> Plan:
    """Return the plan, with "dense" for every layer and shape that was timed and is not in it.

    Without these entries, the layers would use the choice for another shape.
    """
    plan: Plan = {}
    for times in measured.layers:
        plan.setdefault(times.name, {})[times.shape] = "dense"
    for name, choices in measured.plan.items():
        plan[name].update(choices)
    return plan


def _shapes(inputs: Any) -> tuple[Any, ...]:
    """Return the key of a measurement: shapes and types of the inputs, and the autocast mode."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return (
        tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors),
        torch.is_autocast_enabled("cpu"),
    )
