"""Files and folders that are complete or absent, even if the process dies while it writes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


def plain_name(text: str) -> str:
    """A text as part of a file's name: the name of a changed protocol contains special characters.

    Example:
        >>> plain_name("cpu with model.kind=own/net:make")
        'cpu-with-model.kind-own-net-make'
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to lock the file ``path`` in this block, without waiting; yield whether it is locked."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def lock_of(path: Path) -> FileLock:
    """The lock that a process holds while it changes a file that others may change too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that a crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two processes that share a folder out of each other's way.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove the temporary files that killed writers of ``path`` have left beside it.

    The caller must make sure that no process is writing the file now.
    """
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)
