"""The network of a run: one of the harness's own, or a user's."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cifar.models.resnet import ResNet
from benchmarks.cifar.models.wide_resnet import WideResNet, small_dense_scale
from benchmarks.cifar.protocols.protocol import MODELS, Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.protocols.tables import ProtocolError

SMALL_DENSE = "small-dense"
SCALE = "width_scale"


def build_model(protocol: Protocol, spec: RunSpec, num_classes: int) -> nn.Module:
    """The run's network, with initial weights that depend on the global random state only.

    Raises:
        ProtocolError: If the user's network can't be found, or not in the size that is needed.
    """
    scale = 1.0
    if spec.method == SMALL_DENSE:
        assert spec.density is not None
        scale = small_dense_scale(spec.density)
    memory_format = (
        torch.channels_last if protocol.training.channels_last else torch.contiguous_format
    )
    return _network(protocol, num_classes, scale).to(memory_format=memory_format)


def comes_in_widths(protocol: Protocol) -> bool:
    """Whether the network can be made smaller, as ``small-dense`` needs it."""
    kind = protocol.model.kind
    if kind in MODELS:
        return True
    try:
        return SCALE in inspect.signature(_own(kind)).parameters
    except (TypeError, ValueError) as error:
        if isinstance(error, ProtocolError):
            raise
        # Callables that are written in C may have no signature.
        return False


def check_network(protocol: Protocol, classes: int) -> None:
    """Make the user's network, if it is one, and have it classify two images.

    Raises:
        ProtocolError: If that is not possible, or if it has nothing to train.
    """
    kind = protocol.model.kind
    if kind in MODELS:
        return
    with torch.random.fork_rng():
        model = build_model(protocol, RunSpec("dense", None, None, 0), classes)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ProtocolError(f"--model {kind} has no parameters to train")
        size = (2, 3, protocol.image_size, protocol.image_size)
        with torch.no_grad():
            output = _called(kind, f"for images of {size}", model.eval(), torch.zeros(size))
    shape = tuple(getattr(output, "shape", ()))
    if shape != (2, classes):
        raise ProtocolError(
            f"--model {kind} has to return a score for each image and class, {(2, classes)} for "
            f"images of {size}, got {shape or type(output).__name__}"
        )


def _network(protocol: Protocol, num_classes: int, scale: float) -> nn.Module:
    config = protocol.model
    if config.kind == "wrn":
        return WideResNet(config.depth, config.width, config.dropout, num_classes, scale)
    if config.kind == "resnet":
        return ResNet(config.depth, config.width, num_classes, scale)
    if scale == 1.0:
        return _checked(config.kind, num_classes)
    if not comes_in_widths(protocol):
        raise ProtocolError(
            f"small-dense needs smaller networks, but {config.kind} takes no {SCALE!r}, a factor "
            "on every width"
        )
    return _checked(config.kind, num_classes, **{SCALE: scale})


def _own(kind: str) -> Callable[..., Any]:
    module, _, name = kind.partition(":")
    # As ``python -m`` does: the user's module may lie where the command is given.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ProtocolError(f"--model {kind}: {_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ProtocolError(f"--model {kind}: its import raised {_where(error)}") from error
    if not callable(found):
        raise ProtocolError(f"--model {kind}: {name!r} cannot be called")
    return found


def _checked(kind: str, num_classes: int, **scale: float) -> nn.Module:
    how = f"called with the number of classes, {num_classes},"
    model = _called(kind, how, _own(kind), num_classes, **scale)
    if not isinstance(model, nn.Module):
        raise ProtocolError(
            f"--model {kind} has to return a torch.nn.Module when it is called with the number of "
            f"classes, got {type(model).__name__}"
        )
    return model


def _called(kind: str, how: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    try:
        return function(*given, **named)
    except Exception as error:
        raise ProtocolError(f"--model {kind}: {how} it raised {_where(error)}") from error


def _where(error: BaseException) -> str:
    """An error in one line, with where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_line(error)} ({place.filename}, line {place.lineno})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
