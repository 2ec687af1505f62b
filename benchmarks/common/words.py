"""Numbers in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number of things, with a plural in -s.

    Example:
        >>> counted(1, "thread"), counted(2, "thread")
        ('1 thread', '2 threads')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def format_duration(seconds: float) -> str:
    """A duration in suitable units.

    Example:
        >>> format_duration(40), format_duration(3_720), format_duration(300_000)
        ('40 s', '1 h 02 min', '3 days 11 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} days {hours % 24} h"
