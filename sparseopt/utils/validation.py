"""Checks of arguments, shared by all public functions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def unknown_name(argument: str, value: object, known: Iterable[str]) -> ValueError:
    """Return the error for an unknown name, with the most similar known name as a suggestion."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"{argument}={value!r} is not known{hint} Known: {', '.join(names)}.")


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise unknown_name(argument, value, choices)


def check_density(argument: str, value: object) -> float:
    """Return ``value`` as a float in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r} must be a number in (0, 1].")
    density = float(value)
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"{argument}={value!r} must be in (0, 1]: it is the share of live weights, not the "
            "share of dropped weights."
        )
    return density


def check_fraction(argument: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r} must be a number in [0, 1].")
    fraction = float(value)
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{argument}={value!r} must be in [0, 1].")
    return fraction


def check_decay(argument: str, value: object) -> float:
    """Return ``value``, the weight of the past in a moving average, as a float in [0, 1)."""
    decay = check_fraction(argument, value)
    if decay == 1.0:
        raise ValueError(f"{argument}={value!r} must be less than 1: at 1 no new value counts.")
    return decay


def check_not_negative(argument: str, value: object) -> float:
    """Return ``value`` as a finite float that is at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r} must be a number of at least 0.")
    number = float(value)
    if not 0.0 <= number < float("inf"):
        raise ValueError(f"{argument}={value!r} must be finite and at least 0.")
    return number


def check_seed(argument: str, value: object) -> int:
    """Return ``value`` as an int that a torch generator takes."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}={value!r} must be an int, or None.")
    seed = int(value)
    if not 0 <= seed < 2**64:
        raise ValueError(f"{argument}={value!r} must be in [0, 2**64).")
    return seed


def check_count(argument: str, value: object, *, minimum: int, of: str = "") -> int:
    """Return ``value`` as an int that is at least ``minimum``; ``of`` says what is counted."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}={value!r} must be a whole number{of}.")
    count = int(value)
    if count < minimum:
        raise ValueError(f"{argument}={value!r} must be at least {minimum}.")
    return count


def whole_number(returned: str, value: object) -> int:
    """Return a value that user code returned as an int; ``returned`` begins the error's message."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{returned}: it must be a whole number, such as int(...) returns.")
    return int(value)


def check_steps(argument: str, value: object, *, minimum: int) -> int:
    """Return ``value`` as a number of steps that is at least ``minimum``."""
    return check_count(argument, value, minimum=minimum, of=" of step() calls")


def check_model(argument: str, model: object) -> None:
    """Raise unless ``model`` is a module whose parameters and buffers have shapes and values.

    Those of a lazy module have no shapes yet, and those on the meta device have no values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument} must be a torch.nn.Module, not a {type(model).__name__}.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"{argument} has no shapes yet, because the module of {name!r} is lazy: run one "
                "input through the model before."
            )
        if tensor.is_meta:
            raise ValueError(
                f"{argument} has no values, because {name!r} is on the meta device: call "
                f"to_empty(device='cpu') of the model, and load its weights."
            )


def check_changes_mode(argument: str, model: nn.Module) -> None:
    """Raise if the mode of a model can't be changed, because it is an exported program's module."""
    if "train" in vars(model):
        raise ValueError(
            f"{argument} can't change between training and evaluation, as the module() of an "
            "exported program can't: pass the model that was exported."
        )


def check_inputs_have_values(argument: str, inputs: object) -> None:
    """Raise if a tensor in ``inputs`` is on the meta device, and so has no values."""
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_meta:
            raise ValueError(
                f"{argument} has a tensor of the shape {tuple(leaf.shape)} on the meta device, "
                "which has no values: pass inputs on the device of the model."
            )
