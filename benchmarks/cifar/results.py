"""The results file: one JSON object a line, appended when a run ends and never rewritten."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class ResultsError(Exception):
    """A results file with a damaged line in its middle."""


def append_result(path: Path, record: Record) -> None:
    """Append one finished run, on disk when this returns."""
    line = json.dumps(record, allow_nan=False, sort_keys=True) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_unfinished_line(path)
    # One write in append mode, so that lines of two processes cannot mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_results(path: Path) -> list[Record]:
    """All finished runs, oldest first; a last line that a crash cut short is left out.

    Raises:
        ResultsError: If any other line is not a JSON object.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    lines = text.split(b"\n")
    unfinished = lines.pop()
    if unfinished:
        warnings.warn(f"{path}: left out the last line, which was cut short", stacklevel=2)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ResultsError(f"{path}, line {number}, is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ResultsError(f"{path}, line {number}, is not a JSON object")
        records.append(record)
    return records


def _cut_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
