"""What sections of the report have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def made_with(record: Mapping[str, Any]) -> list[str]:
    """Say on which machine and at which commit a record was made."""
    made = record["environment"]
    machine = f"{made['processor']}, {made['threads']} threads, torch {made['torch']}"
    return [f"{machine}, commit `{made['git_commit']}`.", ""]


def fastest(times: Mapping[str, float], name: str) -> tuple[float, str]:
    """Return the least time of a model, in milliseconds, and in which way that was."""
    return min(
        (value, key.removeprefix(f"{name}, "))
        for key, value in times.items()
        if key.startswith(f"{name}, ")
    )


def times(number: float) -> str:
    """A time in milliseconds."""
    return f"{number:.1f} ms" if number >= 100 else f"{number:.2f} ms"
