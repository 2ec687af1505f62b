"""How much of each layer is live: densities by layer, and exact live counts.

This module needs only the shapes of weights: ``(out, in, *kernel)`` of a convolution,
``(out, in)`` of a linear layer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from sparseopt.utils.names import is_pattern, means, written_names
from sparseopt.utils.validation import check_density, unknown_name
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "Distribution",
    "Init",
    "Shapes",
    "er",
    "erk",
    "get_distribution",
    "live_counts",
    "uniform",
]

#: The weight's shape of each layer, by name, in the model's order.
Shapes = Mapping[str, Sequence[int]]
#: A function from the shapes and the density of all layers together to the density of each layer.
Distribution = Callable[[Shapes, float], Mapping[str, float]]
#: The value of one key in a mapping: a density, or how the layers of the key share one.
Choice = float | str | Distribution
#: What ``init=`` takes; :func:`sparseopt.distributions.live_counts` explains it.
Init = str | Distribution | Mapping[str, Choice]

D = TypeVar("D", bound=Distribution)


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Give every layer the same density, except the first layer, which stays dense.

    The report calls this "Random". The other layers do not pay for the dense first layer, so the
    density of the network is above ``density`` (Evci et al. 2020, section 3, "Uniform").

    Args:
        shapes: the weight's shape of each layer, in the model's order.
        density: the density of every layer but the first, in (0, 1].

    Returns:
        The density of each layer, in (0, 1].

    Raises:
        TypeError: if ``density`` is not a number.
        ValueError: if it is outside (0, 1].

    Example:
        >>> uniform({"conv": (16, 3, 3, 3), "fc": (10, 64)}, 0.1)
        {'conv': 1.0, 'fc': 0.1}
    """
    check_density("density", density)
    names = list(shapes)
    return {name: 1.0 if name == names[0] else density for name in names}


def er(shapes: Shapes, density: float) -> dict[str, float]:
    r"""Erdős-Rényi: the density of a layer follows its inputs and outputs.

    .. math:: d_l = \epsilon\, \frac{n_\mathrm{in} + n_\mathrm{out}}{n_\mathrm{in}\, n_\mathrm{out}}

    The size of a convolution's kernel plays no part (Mocanu et al. 2018; Evci et al. 2020, section
    3). Layers that would exceed density 1 become dense, and :math:`\epsilon` is solved again for
    the others until no layer exceeds 1. So all layers together have ``density``.

    Args:
        shapes: the weight's shape of each layer, in the model's order.
        density: the density of all layers together, in (0, 1].

    Returns:
        The density of each layer, in (0, 1].

    Raises:
        TypeError: if ``density`` is not a number.
        ValueError: if it is outside (0, 1].

    Example:
        >>> densities = er({"conv": (16, 3, 3, 3), "mid": (64, 64, 3, 3), "fc": (10, 64)}, 0.1)
        >>> {name: round(value, 3) for name, value in densities.items()}
        {'conv': 1.0, 'mid': 0.086, 'fc': 0.317}
    """
    return _erdos_renyi(shapes, density, lambda shape: sum(shape[:2]) / math.prod(shape[:2]))


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    r"""Erdős-Rényi-Kernel: the density of a layer follows all its dimensions.

    .. math:: d_l = \epsilon\, \frac{\sum_i \mathrm{shape}_{l,i}}{\prod_i \mathrm{shape}_{l,i}}

    Layers that would exceed density 1 become dense, and :math:`\epsilon` is solved again for the
    others until no layer exceeds 1. So all layers together have ``density`` (Evci et al. 2020,
    section 3).

    Args:
        shapes: the weight's shape of each layer, in the model's order.
        density: the density of all layers together, in (0, 1].

    Returns:
        The density of each layer, in (0, 1].

    Raises:
        TypeError: if ``density`` is not a number.
        ValueError: if it is outside (0, 1].

    Example:
        >>> densities = erk({"conv": (16, 3, 3, 3), "mid": (64, 64, 3, 3), "fc": (10, 64)}, 0.1)
        >>> {name: round(value, 3) for name, value in densities.items()}
        {'conv': 1.0, 'mid': 0.074, 'fc': 1.0}
    """
    return _erdos_renyi(shapes, density, lambda shape: sum(shape) / math.prod(shape))


_DISTRIBUTIONS: Final[dict[str, Distribution]] = {"uniform": uniform, "er": er, "erk": erk}


def register_distribution(name: str) -> Callable[[D], D]:
    """Make a distribution reachable as ``init=name``; use it as a decorator of a function.

    Args:
        name: a name that no other distribution has.

    Returns:
        A decorator, which returns the function itself. The function takes the shapes by layer name
        and a density, and returns a density in (0, 1] for every one of these names.

    Raises:
        TypeError: if the name is no string, or the function does not take two arguments.
        ValueError: if the name is taken by another function.

    Example:
        >>> import math
        >>> from sparseopt import register_distribution
        >>> from sparseopt.distributions import live_counts
        >>> @register_distribution("half-of-the-largest")
        ... def half_of_the_largest(shapes, density):
        ...     largest = max(shapes, key=lambda name: math.prod(shapes[name]))
        ...     return {name: density / 2 if name == largest else density for name in shapes}
        >>> live_counts({"a": (4, 5), "b": (10, 10)}, 0.5, "half-of-the-largest")
        {'a': 10, 'b': 25}
    """
    given: object = name
    if not isinstance(given, str) or not given:
        raise TypeError(
            f"name={name!r} must be a string that is not empty, as in "
            '@register_distribution("my-own").'
        )

    def register(distribution: D) -> D:
        try:
            inspect.signature(distribution).bind({}, 0.1)
        except TypeError as error:
            raise TypeError(
                f"the distribution {name!r}, {distribution!r}, must be a function of "
                f"(shapes, density): {error}."
            ) from None
        taken = _DISTRIBUTIONS.get(name)
        if taken is not None and _origin(taken) != _origin(distribution):
            raise ValueError(
                f"name={name!r} is taken by {taken!r}: register {distribution!r} by another name."
            )
        _DISTRIBUTIONS[name] = distribution
        return distribution

    return register


def available_distributions() -> tuple[str, ...]:
    """Return the names that ``init=`` takes, with the library's own names first.

    Example:
        >>> available_distributions()[:3]
        ('uniform', 'er', 'erk')
    """
    return tuple(_DISTRIBUTIONS)


def get_distribution(init: str) -> Distribution:
    """Return the distribution of a name.

    Args:
        init: the name.

    Raises:
        ValueError: if the name is not known.

    Example:
        >>> get_distribution("erk") is erk
        True
    """
    return _as_distribution(init)


def live_counts(
    shapes: Shapes,
    density: float,
    init: Init = "erk",
    overrides: Mapping[str, float] | None = None,
    stacks: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the exact number of live weights of each layer: ``round(density_l * numel_l)``.

    Args:
        shapes: the weight's shape of each layer, in the model's order.
        density: the density of all layers together, in (0, 1].
        init: a registered name (``"erk"``, ``"er"``, ``"uniform"``), a function from shapes and a
            density to the density of each layer, or a mapping from keys to a density, a name or a
            function. A key is a layer's name, a module's name or a pattern (``"encoder.*"``). If
            several keys fit a layer, names win over patterns, an inner module wins over an outer
            one, and the last pattern wins over earlier ones. The layers of one key meet ``density``
            together. With ``"uniform"``, the model's first layer is dense if the key fits it. Each
            layer that no key fits has the density ``density``.
        overrides: layers with a density of their own. ``init`` distributes each such density among
            the layers that share it. A density in a mapping wins over an override.
        stacks: the weights that are a stack of matrices along their first dimension, as the gates
            of an LSTM are, with the number of matrices. ERK and ER treat each matrix as a layer.

    Returns:
        A live count for each layer, at least 1.

    Raises:
        TypeError: if a density is not a number or ``init`` has the wrong type.
        ValueError: if a density is outside (0, 1], a name is not known, a pattern matches no layer,
            or a function leaves a layer out.

    Example:
        >>> live_counts({"a": (4, 5), "b": (10, 10)}, 0.5, {"a": 0.25})
        {'a': 5, 'b': 50}
        >>> live_counts({"a": (8, 8), "b": (8, 8), "head": (2, 8)}, 0.25, {"head": 1.0, "*": "erk"})
        {'a': 16, 'b': 16, 'head': 16}
    """
    check_density("density", density)
    overrides, stacks = dict(overrides or {}), dict(stacks or {})
    if not isinstance(init, Mapping):
        densities = _spread(_as_distribution(init), shapes, density, overrides, stacks, shapes)
    else:
        densities = {name: overrides.get(name, density) for name in shapes}
        for choice, names in _resolve(init, shapes):
            if isinstance(choice, float):
                densities.update(dict.fromkeys(names, choice))
            else:
                members = {name: shapes[name] for name in names}
                own = {name: overrides[name] for name in names if name in overrides}
                densities.update(_spread(choice, members, density, own, stacks, shapes))
    return {
        name: max(1, round(check_density(f"init[{name!r}]", densities[name]) * math.prod(shape)))
        for name, shape in shapes.items()
    }


def _erdos_renyi(
    shapes: Shapes, density: float, raw: Callable[[Sequence[int]], float]
) -> dict[str, float]:
    """Return the densities ``epsilon * raw(shape)``, with layers above 1 made dense.

    Each round makes at least one more layer dense, so the loop ends. Invariant: the dense layers
    and the others at ``epsilon`` have ``budget`` live weights together.
    """
    check_density("density", density)
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    weight = {name: raw(shape) for name, shape in shapes.items()}
    budget = density * sum(numel.values())
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        if not free:
            return dict.fromkeys(shapes, 1.0)
        left = budget - sum(numel[name] for name in dense)
        epsilon = left / sum(weight[name] * numel[name] for name in free)
        full = {name for name in free if epsilon * weight[name] > 1.0}
        if not full:
            return {name: 1.0 if name in dense else epsilon * weight[name] for name in shapes}
        dense |= full


def _origin(function: Distribution) -> tuple[str, str]:
    """Return module and name of a function, which stay the same when its module is reloaded."""
    name = getattr(function, "__qualname__", repr(function))
    return getattr(function, "__module__", ""), name


def _as_distribution(init: object, argument: str = "init") -> Distribution:
    if isinstance(init, str):
        if init not in _DISTRIBUTIONS:
            raise unknown_name(argument, init, _DISTRIBUTIONS)
        return _DISTRIBUTIONS[init]
    if callable(init):
        return init
    raise TypeError(
        f"init={init!r} must be one of {sorted(_DISTRIBUTIONS)}, a mapping from layer name to "
        "density, or a function of (shapes, density)."
    )


def _spread(
    distribution: Distribution,
    shapes: Shapes,
    density: float,
    overrides: Mapping[str, float],
    stacks: Mapping[str, int],
    model: Shapes,
) -> dict[str, float]:
    """Return the density of each layer; layers with the same density are distributed together.

    The layers to spread over are in ``shapes``, and all layers of the model in ``model``.
    """
    if distribution is uniform:
        # If the model's first layer has a density of its own, it is not dense, and no other is.
        in_model = uniform(model, density)
        return {name: overrides.get(name, in_model[name]) for name in shapes}
    by_density: dict[float, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        by_density.setdefault(overrides.get(name, density), {})[name] = shape
    densities: dict[str, float] = {}
    for share, members in by_density.items():
        densities.update(_distribute(distribution, members, share, stacks))
    return densities


def _distribute(
    distribution: Distribution, shapes: Shapes, density: float, stacks: Mapping[str, int]
) -> Mapping[str, float]:
    """Return the density that ``distribution`` gives each layer, after a check of its result.

    For ER and ERK a stack of matrices counts as that many layers.
    """
    if distribution in (er, erk):
        # The matrices of a stack have equal shapes and so equal densities; the first is read.
        first = {name: f"{name}[0]" if name in stacks else name for name in shapes}
        matrices = {
            (f"{name}[{number}]" if name in stacks else name): _matrix(shape, stacks.get(name))
            for name, shape in shapes.items()
            for number in range(stacks.get(name, 1))
        }
        found = distribution(matrices, density)
        return {name: found[first[name]] for name in shapes}
    densities: object = distribution(shapes, density)
    if not isinstance(densities, Mapping):
        raise TypeError(
            f"init={distribution!r} returned {densities!r}, but must return a mapping from every "
            "layer name to a density."
        )
    missing = [name for name in shapes if name not in densities]
    if missing:
        raise ValueError(
            f"init={distribution!r} returned no density for layer {missing[0]!r}, but must return "
            "one for every name in shapes."
        )
    return {name: densities[name] for name in shapes}


def _matrix(shape: Sequence[int], count: int | None) -> Sequence[int]:
    """Return the shape of one matrix in a stack of ``count`` matrices.

    Example:
        >>> _matrix((64, 16), 4), _matrix((8, 32, 16), 8)
        ((16, 16), (32, 16))
    """
    if count is None:
        return shape
    rows, *rest = shape
    return tuple(rest) if rows == count else (rows // count, *rest)


def _resolve(
    init: Mapping[str, Choice], shapes: Shapes
) -> list[tuple[float | Distribution, list[str]]]:
    """Return the value of each key with its layers; a layer belongs to its strongest key only."""
    found, taken, keys = [], set[str](), list(init)[::-1]
    # Names come before patterns, inner modules before outer ones, later patterns before earlier.
    keys.sort(key=lambda key: (1, 0) if is_pattern(key) else (0, -canonical_name(key).count(".")))
    for key in keys:
        names = layers_named(key, shapes)
        if not names:
            raise unknown_name("the layer name in init", key, shapes)
        left = [name for name in names if name not in taken]
        found.append((_checked_choice(key, init[key]), left))
        taken.update(names)
    return found


def _checked_choice(key: str, choice: object) -> float | Distribution:
    if isinstance(choice, str) or callable(choice):
        return _as_distribution(choice, f"init[{key!r}]")
    return check_density(f"init[{key!r}]", choice)


def layers_named(key: str, names: Collection[str]) -> list[str]:
    """Return all layers that ``key`` selects: one layer, a module's layers, or a pattern's.

    Example:
        >>> layers_named("lstm", ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"])
        ['lstm.weight_ih_l0', 'lstm.weight_hh_l0']
    """
    exact = layer_named(key, names)
    if exact is not None:
        return [exact]
    written = written_names(names)
    return [name for name in names if means(key, name) or means(key, written[name])]


def layer_named(key: str, names: Collection[str]) -> str | None:
    """Return the layer that ``key`` names, by the name of its parameter or of its module, if any.

    Prefixes of wrappers in the key, such as ``module.``, are ignored. A parameter from which a
    weight is computed is found by the weight's name too.

    Example:
        >>> layer_named("module.fc", ["fc.weight"])
        'fc.weight'
        >>> layer_named("conv", ["conv.parametrizations.weight.original1"])
        'conv.parametrizations.weight.original1'
    """
    plain = canonical_name(key)
    called = (key, f"{key}.weight", plain, f"{plain}.weight")
    exact = next((name for name in called if name in names), None)
    if exact is not None:
        return exact
    return next((name for name, written in written_names(names).items() if written in called), None)


def match_name(argument: str, key: str, names: Mapping[str, object]) -> str:
    """Return the layer that ``key`` names; see :func:`layer_named`.

    Raises:
        ValueError: if ``key`` names no layer.
    """
    name = layer_named(key, names)
    if name is None:
        raise unknown_name(f"the layer name in {argument}", key, names)
    return name
