"""The folder that everything is written to.

Its results file has one JSON object a line, appended when a run ends and never rewritten.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.files import claimed, lock_of, remove_unfinished

Record = dict[str, Any]


class ResultsError(Exception):
    """A results file with a damaged line in its middle."""


def append_result(path: Path, record: Record) -> None:
    """Append one finished run and flush it to disk; several processes may append."""
    line = json.dumps(record, allow_nan=False, sort_keys=True) + "\n"
    # Without the lock, a line that another process is writing would look like the rest of a crash.
    with lock_of(path), path.open("ab+") as file:
        file.seek(0)
        # Remove the incomplete line of a crash.
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(path: Path) -> list[Record]:
    """All finished runs, oldest first; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    text = path.read_bytes()
    lines = text.split(b"\n")
    unfinished = lines.pop()
    if unfinished:
        warnings.warn(f"{path}: left out the last line, which was cut short", stacklevel=2)
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


class FinishedRuns:
    """The keys in a results file, which may grow and need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: set[str] = set()
        self._size = 0

    def has(self, key: str) -> bool:
        """Whether a run is in the file now."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if key not in self._keys and size != self._size:
            with warnings.catch_warnings():
                # Another process may be writing the last line.
                warnings.simplefilter("ignore", UserWarning)
                self._keys = {record["key"] for record in read_results(self._path)}
            self._size = size
        return key in self._keys


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{path}, line {number}, is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ResultsError(f"{path}, line {number}, is not a JSON object")
    return record


@dataclass(frozen=True)
class Folder:
    """Where results, checkpoints, masks and data are kept."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.jsonl"

    @property
    def timings(self) -> Path:
        return self.root / "timings.jsonl"

    @property
    def repeats(self) -> Path:
        """Lines of the results files of other folders, of runs that are in these results too."""
        return self.root / "repeats.jsonl"

    @property
    def cache(self) -> Path:
        """Decoded images."""
        return self.root / "cache"

    @property
    def search(self) -> Path:
        """Optuna's journal of all searches."""
        return self.root / "search" / "journal.log"

    def checkpoint(self, key: str) -> Path:
        """The checkpoint from which an unfinished run resumes."""
        return self.root / "checkpoints" / f"{key}.pt"

    def masks(self, key: str) -> Path:
        """The final masks of a finished run, until the run that depends on them is finished."""
        return self.root / "masks" / f"{key}.npz"

    def structure(self, key: str) -> Path:
        """The structure of a finished run of a structured method, for measuring times."""
        return self.root / "structures" / f"{key}.npz"

    def clear(self, key: str) -> None:
        """Remove files that a finished run no longer needs, also files of killed processes."""
        checkpoint = self.checkpoint(key)
        checkpoint.unlink(missing_ok=True)
        remove_unfinished(checkpoint)
        self._lock(key).unlink(missing_ok=True)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may train a run now: one process at a time may.

        The claim ends with the process, however that ends. Processes on several machines need a
        file system with locks between them.
        """
        path = self._lock(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path) as is_mine:
            yield is_mine

    def _lock(self, key: str) -> Path:
        return self.root / "checkpoints" / f"{key}.lock"
