"""The copy of a model for ``condense``, and the code that a graph of the model would skip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sparseopt.utils.hooks import copy_without_hooks, has_hooks
from sparseopt.utils.nested import containers, parts
from sparseopt.utils.probe import preserve_model

__all__ = ["copy_for_inference", "skipped_by_programs", "skipped_by_trace"]

_Attributes = dict[tuple[str, str], list[object]]


def copy_for_inference(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, in which each weight is a parameter.

    Some weights are computed from other parameters before each call: by ``torch.nn.utils.prune``, a
    parametrization, or the older ``weight_norm`` and ``spectral_norm``. In the copy they have their
    current values. The user's hooks are not copied, so that a hook of the copy records into the
    object that the user has. Hooks that hold a module of the model are copied with it.
    """
    copied = copy_without_hooks(model).eval()
    for module in copied.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm)):
                    hook.remove(module)
                    del hooks[number]
        if is_parametrized(module):
            _settle(module)
        if isinstance(module, nn.RNNBase):
            # Otherwise the next forward pass notes that its weights are other tensors.
            module._init_flat_weights()
    originals = dict(model.named_modules())
    for name, module in copied.named_modules():
        if name in originals:
            _share_hooks(originals[name], module)
    return copied


def _settle(module: nn.Module) -> None:
    """Replace the parametrizations of a module by their values, and restore its own class.

    ``remove_parametrizations`` can't be used. It changes the parametrized class, which the copy
    shares with the original.
    """
    chains: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in chains}
    parameters = {name for name in chains if any(True for _ in chains[name].parameters(False))}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if name in parameters:
            setattr(module, name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


class _Shared:
    """A hook that copies of a module share.

    Args:
        hook: the hook.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _share_hooks(original: nn.Module, copied: nn.Module) -> None:
    """Share the hooks of the original with a copy, except hooks that hold a module or parameter.

    A shared hook would read or write the original's modules. Such hooks are copied instead, and the
    copies hold the modules of the copy.
    """
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(copied, kind)
        for number in hooks:
            hook = getattr(original, kind)[number]
            if not _holds_module(hook, set()):
                hooks[number] = _Shared(hook)


def _holds_module(value: Any, seen: set[int]) -> bool:
    """Whether a copy of ``value`` would copy modules or parameters with it."""
    if isinstance(value, (nn.Module, nn.Parameter)):
        return True
    if id(value) in seen or isinstance(value, (type, ModuleType, FunctionType)):
        return False
    seen.add(id(value))
    parts: list[Any] = [getattr(value, "__self__", None), *getattr(value, "__dict__", {}).values()]
    if isinstance(value, functools.partial):
        parts += [value.func, value.args, value.keywords]
    elif isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, (list, tuple, set)):
        parts += value
    return any(_holds_module(part, seen) for part in parts)


def skipped_by_trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Return which code of a model its graph would skip, or ``None``.

    A graph calls torch's own layers as modules, with their hooks. Of other modules it has only
    operations, and only operations that the result depends on. Of the model itself it has the
    ``forward`` of the class.
    """
    if "forward" in vars(model):
        return "its forward() is replaced on the model itself"
    tracer = fx.Tracer()
    for name, module in model.named_modules():
        if has_hooks(module) and (not name or not tracer.is_leaf_module(module, name)):
            return f"{name or 'the model'!r} has hooks"
    with preserve_model(model), torch.no_grad():
        written = _written(model, args, kwargs)
        again = None if written is None else _written(model, args, kwargs)
    if written is None:
        return None
    if again is None:
        return (
            f"forward() writes {written!r} in its first call only: call the model once before "
            "condense()"
        )
    return f"forward() writes {again!r}"


def skipped_by_programs(model: nn.Module, trace: str | None) -> str | None:
    """Return which code of a model a frozen program would skip, or ``None``.

    This is the code that a graph would skip, and all hooks.

    Args:
        model: the model.
        trace: the result of :func:`skipped_by_trace`.
    """
    if trace is not None:
        return trace
    hooked = (name for name, module in model.named_modules() if has_hooks(module))
    name = next(hooked, None)
    return None if name is None else f"{name!r} has hooks"


def _written(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Run a model, and return the first buffer or attribute that changed, or ``None``."""
    before = _attributes(model)
    model(*args, **kwargs)
    after = _attributes(model)
    for (path, name), contents in after.items():
        known = before.get((path, name), [])
        if len(known) != len(contents) or not all(map(_is_same, known, contents)):
            return f"{path}.{name}" if path else name
    return None


def _attributes(model: nn.Module) -> _Attributes:
    """Return all attributes, with what they hold and the versions of tensors, to see changes."""
    return {
        (path, name): _contents(value)
        for path, module in model.named_modules()
        for name, value in _named(module).items()
    }


def _named(module: nn.Module) -> dict[str, object]:
    """Return attributes, parameters, buffers and modules of a module by name."""
    registers = ("_parameters", "_buffers", "_modules")
    own = {name: value for name, value in vars(module).items() if name not in registers}
    return {**own, **module._parameters, **module._buffers, **module._modules}


def _contents(value: Any) -> list[object]:
    """Return a value and, at any depth, what it holds; each tensor with its version."""
    held = containers(value)
    found = [value, *(part for one in held for part in parts(one) or ())]
    versions = [one._version for one in found if isinstance(one, Tensor) and not one.is_inference()]
    return [*found, *versions]


def _is_same(before: object, after: object) -> bool:
    if before is after:
        return True
    if isinstance(before, tuple) and isinstance(after, tuple):
        # Tuples may hold tensors, whose comparison is a tensor.
        return len(before) == len(after) and all(map(_is_same, before, after))
    plain = (bool, int, float, str, torch.device)
    return isinstance(before, plain) and isinstance(after, plain) and before == after
