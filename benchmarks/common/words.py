"""Numbers as people say them."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Seconds as people say them.

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


def format_bytes(count: float) -> str:
    """Bytes as people say them.

    Example:
        >>> format_bytes(900), format_bytes(2_500_000)
        ('900 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
