"""The dense implementations of a model that torch offers, each as a module."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.utils._pytree import TreeSpec, tree_flatten

from sparseopt.speedup.inference.memory_order import (
    MemoryOrder,
    in_memory_orders,
    memory_orders,
)
from sparseopt.utils.errors import CheckpointError
from sparseopt.utils.nested import map_leaves
from sparseopt.utils.probe import preserve_attributes, preserve_buffers

__all__ = [
    "AS_IT_IS",
    "Frozen",
    "Prepared",
    "UnderAutocast",
    "dense_implementations",
    "unprepared",
]

AS_IT_IS: Final = "as it is"
_SCRIPTED: Final = "frozen TorchScript"
_COMPILED: Final = "torch.compile, frozen"


class Prepared(nn.Module):
    """A model whose inputs are first converted to another number format or memory format.

    Args:
        model: the model, already in the number format ``dtype``.
        dtype: the number format that floating-point inputs are converted to. Outputs of this
            format are converted back to float32, the format of the user's model. ``None`` converts
            nothing.
        orders: the memory order of each output, if maps are converted to channels-last format;
            ``None`` does not convert maps.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype | None,
        orders: tuple[MemoryOrder, ...] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.orders = orders

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        args, kwargs = map_leaves(self._prepared, (args, kwargs))
        if self.dtype is None:
            outputs = self.model(*args, **kwargs)
        else:
            outputs = _restored(self._converted(args, kwargs), self.dtype)
        return outputs if self.orders is None else in_memory_orders(outputs, self.orders)

    def _converted(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the outputs of a model that has all its weights in the number format ``dtype``.

        Autocast is off, because it would mix its own number format with the format of the weights,
        which operations such as LayerNorm do not take.
        """
        device = device_of(self.model).type
        # A trace can't record a context. It is made without autocast, so it needs none.
        if not torch.is_autocast_enabled(device):
            return self.model(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return self.model(*args, **kwargs)

    def _prepared(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self.dtype is not None and value.is_floating_point():
            value = value.to(self.dtype)
        if self.orders is not None and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value


class UnderAutocast(nn.Module):
    """A model that was condensed under autocast, and always computes under autocast.

    If it is called without autocast, its outputs are float32, the format of the user's model. It
    then warns that they are no more precise than under autocast.

    Args:
        model: the model. Some of its layers have weights in the number format of autocast.
        device: the type of the device, such as ``"cpu"``.
        dtype: the number format of autocast.
    """

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        now = _result_dtype(self.device)
        if now == self.dtype:
            return self.model(*args, **kwargs)
        warnings.warn(
            f"this model was condensed under autocast, so it computes in {self.dtype} although "
            "autocast is off or has another number format here. Call it under the same autocast, "
            "or condense it without autocast for float32.",
            UserWarning,
            stacklevel=2,
        )
        with torch.autocast(self.device, self.dtype):
            outputs = self.model(*args, **kwargs)
        return _restored(outputs, self.dtype)


def unprepared(model: nn.Module) -> nn.Module:
    """Return the model inside conversions of its inputs, with the names of the user's model."""
    while isinstance(model, (Prepared, UnderAutocast)):
        model = model.model
    return model


def _restored(outputs: Any, dtype: torch.dtype) -> Any:
    """Return outputs with tensors of ``dtype`` in the format that a float32 model gives them."""

    def converted(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype != dtype:
            return leaf
        return leaf.to(_result_dtype(leaf.device.type))

    return map_leaves(converted, outputs)


def _result_dtype(device: str) -> torch.dtype:
    """Return the number format that a float32 model gives matrix products, autocast or not."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32


class _Program:
    """A compiled or scripted model that a copy of its owner has a copy of, and pickle refuses.

    nn.Module does not see it: ``eval()`` of all submodules would fail, because a frozen script has
    no mode.

    Args:
        call: the compiled or scripted model.
    """

    def __init__(self, call: Any) -> None:
        self.call = call

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        return _Program(copy.deepcopy(self.call, memo))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise pickle.PicklingError(
            "the model that condense() returned is a frozen program, which can't be pickled: pass "
            "scripted=False, compiled=False to condense() for a model that can."
        )


class Frozen(nn.Module):
    """A frozen program: a model whose weights are constants, without modes or gradients.

    Args:
        program: a compiled or scripted model.
        fallback: the model that computes inputs that the program was not traced for: those with
            other shapes, number formats, containers or keys. It also computes all inputs under
            autocast, because the program was made without autocast.
        args: the inputs of the trace, or ``None`` if the program takes all inputs.
    """

    def __init__(
        self, program: Any, fallback: nn.Module, args: tuple[Any, ...] | None = None
    ) -> None:
        super().__init__()
        self._program = _Program(program)
        self.fallback = fallback
        self._known = None if args is None else _signature(args)
        self._device = device_of(fallback).type

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        is_other = self._known is not None and (kwargs or _signature(args) != self._known)
        if is_other or torch.is_autocast_enabled(self._device):
            return self.fallback(*args, **kwargs)
        return self._program.call(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any, **more: Any
    ) -> None:
        """Refuse weights, because only the fallback would take them."""
        name = next((name for name in state_dict if name.startswith(prefix)), None)
        if name is not None:
            raise CheckpointError(
                f"state_dict has {name!r}, but the model that condense() returned is a frozen "
                "program, which can't load weights: load the state dict into the original model, "
                "and condense the original model again."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest, **more)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        """Refuse another number format or device, which only the fallback would take."""

        def checked(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            if (made.dtype, made.device) == (tensor.dtype, tensor.device):
                return made
            raise CheckpointError(
                "the model that condense() returned is a frozen program, which can't be converted "
                f"from {tensor.dtype} on {tensor.device} to {made.dtype} on {made.device}: convert "
                "the original model, and condense the original model again."
            )

        apply: Any = super()._apply
        apply(checked, recurse)
        return self


def _signature(args: tuple[Any, ...]) -> tuple[TreeSpec, list[tuple[Any, Any]]]:
    """Return what a trace fixes of its inputs: containers, and shape and number format of tensors.

    The code of the model may branch on each of these, and a trace has one branch only. Of other
    inputs, type and value are fixed.
    """
    found, spec = tree_flatten(args)
    return spec, [
        (one.shape, one.dtype) if isinstance(one, Tensor) else (type(one), one) for one in found
    ]


def dense_implementations(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype | None,
    programs: Collection[str] = (),
    skipped: str | None = None,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return modules that compute ``model(*args, **kwargs)``, by name of the implementation.

    Args:
        model: the model, in evaluation mode. The modules have copies of it.
        args: positional inputs.
        kwargs: keyword inputs.
        dtype: the number format to compute in; ``None`` for the model's own.
        programs: which frozen programs to make: ``"scripted"``, ``"compiled"``.
        skipped: code of the model that a frozen program would not run. Then none is made.

    Returns:
        The modules by name, and for each implementation that failed the reason, by name.
    """
    copied = copy.deepcopy(model)
    if dtype is not None:
        try:
            copied = copied.to(dtype)
        # A part of the model may be a frozen program itself.
        except CheckpointError as error:
            return {}, {AS_IT_IS: str(error)}
    makers: dict[str, Callable[[], nn.Module]] = {
        AS_IT_IS: lambda: copied if dtype is None else Prepared(copied, dtype)
    }
    has_maps = any(parameter.dim() == 4 for parameter in copied.parameters())
    if has_maps:
        makers["channels-last"] = lambda: _channels_last(copied, dtype, orders)
    # Autocast would be frozen into a traced or compiled graph.
    if not torch.is_autocast_enabled(device_of(copied).type):
        if "scripted" in programs:
            makers[_SCRIPTED] = lambda: _scripted(
                _channels_last(copied, dtype, orders) if has_maps else Prepared(copied, dtype),
                args,
                kwargs,
            )
        if "compiled" in programs:
            makers[_COMPILED] = lambda: _compiled(
                _channels_last(copied, dtype, orders) if has_maps else Prepared(copied, dtype)
            )
    implementations: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    orders: tuple[MemoryOrder, ...] = ()  # of the model as it is, which is made first
    if skipped is not None:
        for name in makers.keys() & {_SCRIPTED, _COMPILED}:
            del makers[name]
            failed[name] = skipped
    for name, make in makers.items():
        # Tracers and compilers raise errors of many types for models that they do not support.
        try:
            with torch.no_grad(), _quiet():
                made = implementations[name] = make()
                with preserve_buffers(made), preserve_attributes(made):
                    outputs = made(*args, **kwargs)
            if name == AS_IT_IS:
                orders = memory_orders(outputs)
        except Exception as error:
            implementations.pop(name, None)
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return implementations, failed


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; without any, the CPU."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((one.device for one in tensors), torch.device("cpu"))


def _channels_last(
    model: nn.Module, dtype: torch.dtype | None, orders: tuple[MemoryOrder, ...]
) -> nn.Module:
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return Prepared(copied, dtype, orders)


def _scripted(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    if kwargs:
        raise ValueError("keyword inputs are not traced")
    trace: Any = torch.jit.trace
    with warnings.catch_warnings():
        # torch warns if the result depends on values of the inputs, such as in a branch. The trace
        # would be wrong for other inputs.
        warnings.simplefilter("error", TracerWarning)
        traced = trace(model.eval(), args, check_trace=False)
    optimized: Any = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    # The first calls specialize the graph.
    for _ in range(2):
        optimized(*args)
    return Frozen(optimized, model, args)


def _compiled(model: nn.Module) -> nn.Module:
    import torch._inductor.config as config

    config.freezing = True  # read at the first call, in dense_implementations()
    return Frozen(torch.compile(model.eval()), model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the warnings that compilers raise about their own code, and restore their settings."""
    import torch._inductor.config as config

    freezing = config.freezing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.freezing = freezing
