"""The one folder that everything is written to, and who may write to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.files import claimed, remove_unfinished


@dataclass(frozen=True)
class Folder:
    """Where results, checkpoints, masks and data are kept.

    Args:
        root: The folder; made when something is written.
    """

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.jsonl"

    @property
    def timings(self) -> Path:
        return self.root / "timings.jsonl"

    @property
    def cache(self) -> Path:
        """Decoded images."""
        return self.root / "cache"

    def checkpoint(self, key: str) -> Path:
        """What an unfinished run resumes from."""
        return self.root / "checkpoints" / f"{key}.pt"

    def masks(self, key: str) -> Path:
        """The final masks of a finished run, kept until the run that builds on them is finished."""
        return self.root / "masks" / f"{key}.pt"

    def structure(self, key: str) -> Path:
        """What a finished run of a structured method left, from which its times are measured."""
        return self.root / "structures" / f"{key}.pt"

    def events(self, key: str) -> Path:
        """TensorBoard's files of a run."""
        return self.root / "tensorboard" / key

    def clear(self, key: str) -> None:
        """Remove what a finished run has no more use for.

        That is its checkpoint, also one that a process left that was killed after it wrote the
        result, and whatever killed processes left half written.
        """
        checkpoint = self.checkpoint(key)
        checkpoint.unlink(missing_ok=True)
        remove_unfinished(checkpoint)
        self._lock(key).unlink(missing_ok=True)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may train a run now; true for one process at a time.

        The claim ends with the process, however that ends. Processes on several machines need a
        file system with locks between them.
        """
        path = self._lock(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path) as mine:
            yield mine

    def _lock(self, key: str) -> Path:
        return self.root / "checkpoints" / f"{key}.lock"
