"""Curves of runs for TensorBoard, on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cifar.protocols.tables import ProtocolError

if TYPE_CHECKING:
    from benchmarks.cifar.running.training import Run


def check_tensorboard() -> None:
    """Raise an error that says how to install TensorBoard, where it is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise ProtocolError(
            "--tensorboard needs TensorBoard: pip install 'sparseopt[tensorboard]'"
        ) from None


class EventWriter:
    """Writes one run's curves.

    Args:
        folder: The run's own; a resumed run adds to what is in it.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def epoch(self, run: Run) -> None:
        """Write what the last epoch of a run came to."""
        for name, value in run.outcome.curve[-1].items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, run.step)
        for layer in getattr(run.optimizer, "layers", ()):
            self._writer.add_scalar(f"density of layers/{layer.name}", layer.density, run.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
