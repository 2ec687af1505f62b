"""Files and folders that are complete or not there, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

UNFINISHED = ".unfinished-"
SECONDS_UNTIL_ABANDONED = 24 * 3600.0


def plain_name(text: str) -> str:
    """A text as part of a file's name: a protocol that was changed has all sorts of signs in its.

    Example:
        >>> plain_name("cpu with model.kind=own/net:make")
        'cpu-with-model.kind-own-net-make'
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process has the lock file ``path`` to itself meanwhile; does not wait for it."""
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
    """Remove what writers of ``path`` that were killed have left beside it.

    The caller has to know that nobody is writing the file now.
    """
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def vanishing_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent``, gone at the end with any parents made for it."""
    _remove_abandoned(parent)
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _remove_abandoned(parent: Path) -> None:
    """Remove temporary folders that their process had no time to remove: those of yesterday."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        if time.time() - folder.stat().st_mtime > SECONDS_UNTIL_ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
