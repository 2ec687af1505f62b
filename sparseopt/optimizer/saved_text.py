"""Writes a value of a checkpoint as one string, and reads it.

torch's loader of full state dicts splits dictionaries, lists and tuples into their items. It loses
those that are empty, and raises an error for items that a fresh optimizer does not have. No loader
splits a string.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor

__all__ = ["from_text", "to_text"]

TENSOR_KEYS: Final = frozenset({"bytes", "dtype", "shape", "on_cpu"})


def to_text(value: Any) -> str:
    """Return ``value`` as JSON. A sharded tensor is written in full, which is a collective call.

    Args:
        value: numbers, strings, ``None`` and tensors, in lists, tuples and dictionaries whose keys
            are strings. Numbers come back exactly, also those that are not finite.
    """
    return json.dumps(value, default=_written)


def from_text(text: str, device: torch.device) -> Any:
    """Return what :func:`to_text` was given, with lists for tuples.

    Args:
        text: the string.
        device: where to put tensors that were not on the CPU.

    Raises:
        ValueError: if it is not a string of :func:`to_text`.
    """
    return json.loads(text, object_hook=lambda found: _read(found, device))


def _written(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"a checkpoint can't hold {type(value).__name__} ({value!r}), but numbers, strings, "
            "None and tensors."
        )
    flat = full_tensor(value).detach().cpu().contiguous().reshape(-1)
    return {
        "bytes": base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode(),
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "on_cpu": value.device.type == "cpu",
    }


def _read(found: dict[str, Any], device: torch.device) -> Any:
    if found.keys() != TENSOR_KEYS:
        return found
    dtype = getattr(torch, found["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{found['dtype']!r} is not a dtype of torch.")
    values = np.frombuffer(base64.b64decode(found["bytes"]), np.uint8).copy()
    tensor = torch.empty(found["shape"], dtype=dtype, device="cpu")
    tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(values))
    return tensor if found["on_cpu"] else tensor.to(device)
