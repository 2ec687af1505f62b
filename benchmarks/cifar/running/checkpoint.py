"""The state that a run resumes from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Parts:
    """Everything that the next step depends on, except random states.

    Args:
        model: Its weights and BatchNorm statistics are saved.
        optimizer: Its state is saved, masks included.
        scheduler: Its state is saved.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler


def random_state() -> dict[str, Any]:
    """The state of torch's global generators."""
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def checkpoint_bytes(
    parts: Parts,
    data_generator: Tensor,
    random_states: Sequence[dict[str, Any]],
    progress: dict[str, Any],
) -> bytes:
    """The content of a checkpoint.

    Args:
        parts: What is trained.
        data_generator: State of the generator of order and augmentation, at the start of the epoch.
        random_states: ``random_state()`` of each process, by rank.
        progress: Plain numbers and lists, returned as they are by ``load_checkpoint``.
    """
    buffer = io.BytesIO()
    state = {
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scheduler": parts.scheduler.state_dict(),
        "data_generator": data_generator,
        **random_states[0],
        "others_rng": list(random_states[1:]),
        "progress": progress,
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def load_checkpoint(
    path: Path, parts: Parts, data_generator: torch.Generator, rank: int = 0
) -> dict[str, Any]:
    """Bring everything back that was saved; return the ``progress``.

    Args:
        path: The file.
        parts: What to load into.
        data_generator: Its state at the start of the epoch comes back.
        rank: Of this process.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.scheduler.load_state_dict(state["scheduler"])
    data_generator.set_state(state["data_generator"])
    _set_random_state([state, *state.get("others_rng", [])], rank)
    progress: dict[str, Any] = state["progress"]
    return progress


def _set_random_state(states: Sequence[dict[str, Any]], rank: int) -> None:
    if rank >= len(states):
        # Resumed by more processes than saved it: the new ones keep their own.
        return
    torch.set_rng_state(states[rank]["torch_rng"])
    if states[rank]["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[rank]["cuda_rng"])
