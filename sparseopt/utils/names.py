"""Names of parameters and modules as users write them: whole, or as patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Final

from sparseopt.utils.wrappers import canonical_name

__all__ = ["COMPUTED_FROM", "is_pattern", "means", "written_name", "written_names"]

#: What older functions of :mod:`torch.nn.utils` call the tensor that a weight is computed from.
COMPUTED_FROM: Final = ("weight_v", "weight_orig")
PARAMETRIZATIONS: Final = ".parametrizations."


def is_pattern(name: str) -> bool:
    """Whether ``name`` stands for all names that it matches, as file names do in a shell."""
    return any(sign in name for sign in "*?[")


def means(key: str, name: str) -> bool:
    """Whether ``key`` is the name of a parameter or of a module around it, or a pattern of one.

    What wrappers put into names, such as ``module.``, may be there or not.

    Example:
        >>> means("encoder", "encoder.fc.weight"), means("*.fc", "encoder.fc.weight")
        (True, True)
    """
    key = canonical_name(key)
    path = name.split(".")
    paths = (".".join(path[:length]) for length in range(1, len(path) + 1))
    return any(fnmatchcase(one, key) if is_pattern(key) else one == key for one in paths)


def written_name(name: str) -> str:
    """Return the name of the weight that is computed from the parameter ``name``, if one is.

    Whether a ``weight_v`` or ``weight_orig`` is such a parameter, its module knows.

    Example:
        >>> written_name("conv.parametrizations.weight.original1")
        'conv.weight'
    """
    path, inside, rest = f".{name}".partition(PARAMETRIZATIONS)
    if inside:
        return f"{path}.{rest.rpartition('.')[0]}".removeprefix(".")
    path, dot, own = name.rpartition(".")
    return f"{path}{dot}weight" if own in COMPUTED_FROM else name


def written_names(names: Collection[str]) -> dict[str, str]:
    """Return the written name of each of ``names``, where the names themselves tell it.

    A ``weight_v`` beside other weights of its module, as in attention, is a weight of its own.

    Example:
        >>> list(written_names(["conv.weight_v", "heads.weight_k", "heads.weight_v"]).values())
        ['conv.weight', 'heads.weight_k', 'heads.weight_v']
    """
    weights_of = Counter(name.rpartition(".")[0] for name in names)
    return {
        name: name
        if weights_of[name.rpartition(".")[0]] > 1 and PARAMETRIZATIONS not in f".{name}"
        else written_name(name)
        for name in names
    }
