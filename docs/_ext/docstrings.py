"""What a docstring in Google's style has to say, and doesn't."""

import doctest
import inspect
import re
from collections.abc import Iterator

from public_names import PublicName

SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)
FIELD = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?:", re.MULTILINE)


def wrong_in(name: PublicName) -> Iterator[str]:
    """Yield what is wrong with the docstring of a public name, or of its owner for a field."""
    if name.is_field:
        if name.last not in _described(_docstring(name.owner)):
            yield "is not described in the docstring of its class"
    elif name.owner is not None:
        if not _docstring(name.value):
            yield "has no docstring"
    elif inspect.isclass(name.value) or inspect.isfunction(name.value):
        if not doctest.DocTestParser().get_examples(_docstring(name.value)):
            yield "has no example in its docstring"
        documented = inspect.getmro(name.value) if inspect.isclass(name.value) else [name.value]
        described = set().union(*(_described(_docstring(one)) for one in documented))
        for parameter in _parameters(name.value):
            if parameter not in described:
                yield f"does not describe {parameter!r} in its docstring"


def _described(docstring: str) -> set[str]:
    """Return what is described as an argument or an attribute."""
    sections = SECTION.findall(f"{docstring}\n")
    return {field for section in sections for field in FIELD.findall(section)}


def _docstring(value: object) -> str:
    """Return the docstring that is written there, not one that is inherited."""
    function = getattr(value, "__func__", value)
    return inspect.cleandoc(getattr(function, "__doc__", None) or "")


def _parameters(value: type) -> list[str]:
    """Return the parameters to describe: none of errors and protocols, and no properties."""
    if inspect.isclass(value) and (
        issubclass(value, BaseException) or getattr(value, "_is_protocol", False)
    ):
        return []
    return [
        name
        for name in inspect.signature(value).parameters
        if not isinstance(inspect.getattr_static(value, name, None), property)
    ]
