"""Names of parameters and modules as users write them: whole, or as patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

from sparseopt.utils.wrappers import canonical_name

__all__ = ["is_pattern", "means"]


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
