"""Names of parameters and modules as users write them: full names, or patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Final

from sparseopt.utils.wrappers import canonical_name

__all__ = ["COMPUTED_FROM", "is_pattern", "means", "written_name", "written_names"]

#: The names of tensors from which older functions of :mod:`torch.nn.utils` compute a weight.
COMPUTED_FROM: Final = ("weight_v", "weight_orig")
PARAMETRIZATIONS: Final = ".parametrizations."


def is_pattern(name: str) -> bool:
    """Whether ``name`` is a pattern, with the wildcards of file names in a shell."""
    return any(sign in name for sign in "*?[")


def means(key: str, name: str) -> bool:
    """Whether ``key`` selects the parameter ``name``.

    A key is the parameter's name, the name of a module around it, or a pattern of such a name.
    Prefixes of wrappers in the key, such as ``module.``, are ignored.

    Example:
        >>> means("encoder", "encoder.fc.weight"), means("*.fc", "encoder.fc.weight")
        (True, True)
    """
    key = canonical_name(key)
    path = name.split(".")
    paths = (".".join(path[:length]) for length in range(1, len(path) + 1))
    return any(fnmatchcase(one, key) if is_pattern(key) else one == key for one in paths)


def written_name(name: str) -> str:
    """Return the name of the weight that is computed from the parameter ``name``.

    Without such a weight, return ``name``. A parameter called ``weight_v`` or ``weight_orig`` is
    taken for the source of a weight; only its module can tell for sure.

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
    """Return :func:`written_name` of each of ``names``, as far as the names alone tell it.

    A ``weight_v`` beside other weights of its module, as in attention, is an ordinary weight.

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
