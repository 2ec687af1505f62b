"""Runs a model to learn something about it, and restores the model afterwards."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparseopt.utils.nested import containers
from sparseopt.utils.tensors import is_strided, version_of

__all__ = [
    "no_attention_fast_path",
    "no_detection_of_causal_masks",
    "no_key_value_cache",
    "preserve_attributes",
    "preserve_buffers",
    "preserve_model",
    "preserve_model_state",
    "preserve_random_state",
]

#: The argument of torch's stacks of layers that says whether their mask is causal.
_CAUSAL_HINTS: Final = {nn.TransformerEncoder: "is_causal", nn.TransformerDecoder: "tgt_is_causal"}
#: The attributes of every module, such as its parameters and hooks.
_OF_TORCH: Final = frozenset(vars(nn.Module()))
#: The containers that are emptied and filled again; subclasses may forbid it.
_MUTABLE: Final = frozenset({list, set, dict, OrderedDict, defaultdict, Counter, deque})


@contextmanager
def preserve_model(model: nn.Module) -> Iterator[None]:
    """Restore a model's state and its attributes, which a forward pass in this block changes."""
    with preserve_model_state(model), preserve_attributes(model):
        yield


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Restore what a forward pass in this block changes: modes, buffers, random state, sharding.

    Gradients are not restored.
    """
    with ExitStack() as stack:
        stack.enter_context(preserve_random_state(model))
        stack.enter_context(_same_modes(model))
        stack.enter_context(preserve_buffers(model))
        stack.enter_context(_same_sharding(model))
        stack.enter_context(_no_cached_casts())
        yield


@contextmanager
def no_attention_fast_path() -> Iterator[None]:
    """Run attention of torch operator by operator in this block."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def no_detection_of_causal_masks(model: nn.Module) -> Iterator[None]:
    """Let torch's encoders and decoders use their masks in this block without reading the values.

    Left to themselves, they compare the mask with a causal one, which has no graph. The result is
    the same: a causal mask that is named as such merely needs no memory.
    """

    def use_mask(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hint = next(name for kind, name in _CAUSAL_HINTS.items() if isinstance(module, kind))
        given = inspect.signature(module.forward).bind(*args, **kwargs)
        if given.arguments.get(hint) is None:
            given.arguments[hint] = False
        return given.args, given.kwargs

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, tuple(_CAUSAL_HINTS)):
                handle = module.register_forward_pre_hook(use_mask, with_kwargs=True)
                stack.callback(handle.remove)
        yield


@contextmanager
def no_key_value_cache(model: nn.Module) -> Iterator[None]:
    """Let models of transformers return no cache of keys and values in this block."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True


def preserve_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """Restore the random state of the CPU and of the model's GPUs after this block."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    return torch.random.fork_rng(devices=devices)


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that the forward pass wrote to or replaced."""
    places = [
        (module, dict(module._buffers))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # Its buffers can't be replaced.
    ]
    values = [(buffer, buffer.clone(), version_of(buffer)) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in places:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, saved, version in values:
                if not _same_values(buffer, saved, version):
                    buffer.copy_(saved)


@contextmanager
def preserve_attributes(model: nn.Module) -> Iterator[None]:
    """Restore attributes that the forward pass set, and what their containers and dataclasses hold.

    Containers in containers are restored too. Tensors that it wrote to in place are not restored.
    """
    saved = [(vars(module), _own_attributes(module)) for module in model.modules()]
    held = [
        (one, _contents(one))
        for one in containers([before for _, before in saved])
        if type(one) in _MUTABLE or _is_object(one)
    ]
    try:
        yield
    finally:
        for attributes, before in saved:
            for name in attributes.keys() - before.keys() - _OF_TORCH:
                del attributes[name]
            attributes.update(before)
        for one, contents in held:
            _refill(one, contents)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _is_object(value: object) -> bool:
    """Whether a value is an object with fields, and not also a container, as outputs often are."""
    return isinstance(value, SimpleNamespace) or (
        dataclasses.is_dataclass(value) and not isinstance(value, Collection)
    )


def _contents(value: Any) -> Any:
    """Return a copy of a container, or the values of an object's attributes by name."""
    if type(value) in _MUTABLE:
        return copy.copy(value)
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ())]
    names = [*getattr(value, "__dict__", ()), *slots]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _refill(value: Any, contents: Any) -> None:
    """Let a container or object hold again what it held."""
    if type(value) in _MUTABLE:
        value.clear()
        getattr(value, "extend" if isinstance(value, (list, deque)) else "update")(contents)
        return
    for name in set(getattr(value, "__dict__", ())) - contents.keys():
        object.__delattr__(value, name)
    for name, one in contents.items():
        object.__setattr__(value, name, one)


def _same_values(buffer: Tensor, saved: Tensor, version: int) -> bool:
    # Each write increases the version counter that autograd checks, so write only what differs.
    if not is_strided(buffer) or buffer.is_meta or buffer.dtype == torch.complex32:
        # torch does not compare these. A write through .data or NumPy is not noticed.
        return version_of(buffer) == version
    return buffer.shape == saved.shape and torch.equal(buffer, saved)


@contextmanager
def _same_sharding(model: nn.Module) -> Iterator[None]:
    """Shard the weights again that FSDP2 gathered in this block.

    FSDP2 keeps the root's weights gathered for a backward pass. Without one, it would use the
    gathered weights after the next step too, when they are outdated.
    """
    if not dist.is_available():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    gathered_by = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        yield
    finally:
        for module in gathered_by:
            module.reshard()


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Switch autocast's cache of casts off in this block.

    A cast made here without gradients would otherwise be reused where gradients are needed.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
