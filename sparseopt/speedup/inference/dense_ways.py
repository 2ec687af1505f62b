"""The ways to run a model densely that torch offers, each as a module that takes its inputs."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from sparseopt.utils.probe import preserve_buffers

__all__ = ["AS_IT_IS", "Frozen", "Prepared", "UnderAutocast", "dense_ways"]

AS_IT_IS: Final = "as it is"
_SCRIPTED: Final = "frozen TorchScript"
_COMPILED: Final = "torch.compile, frozen"


class Prepared(nn.Module):
    """A model whose inputs are brought into another number format or memory format before.

    Args:
        model: the model, in that number format.
        dtype: what floating-point inputs become; outputs of it become float32, as which the model
            was given. ``None`` leaves all as they are.
        channels_last: whether maps are brought into channels-last format.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype | None, *, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.channels_last = channels_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        args, kwargs = tree_map(self._prepared, (args, kwargs))
        outputs = self.model(*args, **kwargs)
        return outputs if self.dtype is None else tree_map(self._restored, outputs)

    def _prepared(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self.dtype is not None and value.is_floating_point():
            value = value.to(self.dtype)
        if self.channels_last and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    def _restored(self, value: Any) -> Any:
        is_own = isinstance(value, Tensor) and value.dtype == self.dtype
        return value.to(_given_now(value.device.type)) if is_own else value


class UnderAutocast(nn.Module):
    """A model whose layers were exchanged under autocast, and which computes under it always.

    Where autocast is off, its outputs are float32, as which the model was given, and it warns that
    they are no more precise than under autocast.

    Args:
        model: the model, some of whose layers have weights in the number format of autocast.
        device: the kind of device.
        dtype: the number format of autocast.
    """

    def __init__(self, model: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device = device
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        now = _given_now(self.device)
        if now == self.dtype:
            return self.model(*args, **kwargs)
        warnings.warn(
            f"this model was condensed under autocast: it computes in {self.dtype} here, too, "
            "where autocast is off or has another number format. Condense it without autocast for "
            "float32, or call it under autocast.",
            UserWarning,
            stacklevel=2,
        )
        with torch.autocast(self.device, self.dtype):
            outputs = self.model(*args, **kwargs)
        return tree_map_only(
            Tensor, lambda value: value.to(now) if value.dtype == self.dtype else value, outputs
        )


def _given_now(device: str) -> torch.dtype:
    """Return the number format in which a model in float32 returns results of matrix products."""
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32


class Frozen(nn.Module):
    """A frozen program: it has no weights, modes or gradients any more.

    Args:
        program: a compiled or scripted model.
        otherwise: what computes inputs of other shapes than a trace was made for, and all inputs
            under autocast, which is off in the program.
        args: the inputs of the trace; ``None`` where the program takes other shapes.
    """

    def __init__(
        self, program: Any, otherwise: nn.Module, args: tuple[Any, ...] | None = None
    ) -> None:
        super().__init__()
        # In a tuple it is no submodule: scripted ones have no mode, which every module asks for.
        self._program = (program,)
        self.otherwise = otherwise
        self._known = None if args is None else _shapes(args)
        self._device = device_of(otherwise).type

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns."""
        is_other = self._known is not None and (kwargs or _shapes(args) != self._known)
        if is_other or torch.is_autocast_enabled(self._device):
            return self.otherwise(*args, **kwargs)
        return self._program[0](*args, **kwargs)


def _shapes(args: tuple[Any, ...]) -> list[Any]:
    """Return the shapes of tensors, and other inputs as they are."""
    return [one.shape if isinstance(one, Tensor) else one for one in tree_leaves(args)]


def dense_ways(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype | None,
    programs: Collection[str] = (),
    lost: str | None = None,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return modules that compute ``model(*args, **kwargs)``, by name of the way.

    Args:
        model: the model, in evaluation mode; it is copied.
        args: positional inputs.
        kwargs: keyword inputs.
        dtype: the number format to compute in; ``None`` for the model's own.
        programs: which frozen ones are among the ways: ``"scripted"``, ``"compiled"``.
        lost: what of the model a frozen program would not run, and therefore is none of the ways.

    Returns:
        The modules, and why others could not be made, by name.
    """
    copied = copy.deepcopy(model)
    if dtype is not None:
        copied = copied.to(dtype)
    makers: dict[str, Callable[[], nn.Module]] = {
        AS_IT_IS: lambda: copied if dtype is None else Prepared(copied, dtype)
    }
    has_maps = any(parameter.dim() == 4 for parameter in copied.parameters())
    if has_maps:
        makers["channels-last"] = lambda: _channels_last(copied, dtype)
    # Autocast is off in a traced or compiled graph, or frozen into it.
    if not torch.is_autocast_enabled(device_of(copied).type):
        if "scripted" in programs:
            makers[_SCRIPTED] = lambda: _scripted(
                _channels_last(copied, dtype) if has_maps else Prepared(copied, dtype), args, kwargs
            )
        if "compiled" in programs:
            makers[_COMPILED] = lambda: _compiled(
                _channels_last(copied, dtype) if has_maps else Prepared(copied, dtype)
            )
    ways: dict[str, nn.Module] = {}
    failed: dict[str, str] = {}
    if lost is not None:
        for name in makers.keys() & {_SCRIPTED, _COMPILED}:
            del makers[name]
            failed[name] = lost
    for name, make in makers.items():
        # Compilers and tracers refuse models in many ways.
        try:
            with torch.no_grad(), _quiet():
                ways[name] = make()
                with preserve_buffers(ways[name]):
                    ways[name](*args, **kwargs)
        except Exception as error:
            ways.pop(name, None)
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ways, failed


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; without parameters, the CPU."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _channels_last(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return Prepared(copied, dtype, channels_last=True)


def _scripted(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    if kwargs:
        raise ValueError("keyword inputs are not traced")
    trace: Any = torch.jit.trace
    with warnings.catch_warnings():
        # What depends on numbers in the input would be frozen as it is for these inputs.
        warnings.simplefilter("error", TracerWarning)
        traced = trace(model.eval(), args, check_trace=False)
    optimized: Any = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    # The first calls specialize the graph.
    for _ in range(2):
        optimized(*args)
    return Frozen(optimized, model, args)


def _compiled(model: nn.Module) -> nn.Module:
    import torch._inductor.config as config

    config.freezing = True  # read at the first call, which dense_ways() makes
    return Frozen(torch.compile(model.eval()), model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what compilers warn of their own code to themselves, and put their settings back."""
    import torch._inductor.config as config

    freezing = config.freezing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.freezing = freezing
