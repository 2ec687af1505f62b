"""JSON of what tests are run with, in lines that are pleasant to compare."""

import json
import math
from typing import Any

import torch


def plain(value: Any) -> Any:
    """The value as JSON has it, with dtypes and classes by name.

    Raises:
        TypeError: If it is, or holds, anything else.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    raise TypeError(f"{type(value).__name__} has no plain form")


def one_line_where_it_fits(value: Any, indent: int = 0) -> str:
    """JSON that is pleasant to compare: what fits on a line of 100 is on one."""
    line = json.dumps(value, ensure_ascii=False)
    if indent + len(line) <= 100 or not isinstance(value, list | dict):
        return line
    if isinstance(value, dict):
        entries = [
            f"{json.dumps(key)}: {one_line_where_it_fits(entry, indent + 1)}"
            for key, entry in value.items()
        ]
    else:
        entries = [one_line_where_it_fits(entry, indent + 1) for entry in value]
    space = " " * (indent + 1)
    inside = f",\n{space}".join(entries)
    left, right = "[]" if isinstance(value, list) else "{}"
    return f"{left}\n{space}{inside}\n{' ' * indent}{right}"
