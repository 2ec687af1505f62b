"""Files that are either complete or not there, and the state a run resumes from."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


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


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    data_generator: torch.Generator,
    progress: dict[str, Any],
) -> None:
    """Write everything that the next epoch depends on, random states included.

    Args:
        path: The file to replace.
        model: Its weights and BatchNorm statistics are saved.
        optimizer: Its state is saved, masks included.
        scheduler: Its state is saved.
        data_generator: The generator of order and augmentation.
        progress: Plain numbers and lists, returned as they are by ``load_checkpoint``.
    """
    buffer = io.BytesIO()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "data_generator": data_generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": progress,
    }
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    data_generator: torch.Generator,
) -> dict[str, Any]:
    """Bring everything back that ``save_checkpoint`` saved; return its ``progress``."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    data_generator.set_state(state["data_generator"])
    torch.set_rng_state(state["torch_rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    progress: dict[str, Any] = state["progress"]
    return progress
