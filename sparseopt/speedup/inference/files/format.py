"""The format of a sparse model in a safetensors file.

Tensors:

- For a sparse weight ``name``: ``name:values``, its live values, 1-D in row-major order; and
  ``name:bits`` or ``name:gaps``, their positions (see ``positions.py``).
- All other tensors of the state dict, by their own names.

Metadata, of which all but the first are JSON:

- ``sparseopt``: the version of this format.
- ``shapes``: the shapes of the sparse weights, by name.
- ``aliases``: for each further name of a tied tensor, the name under which the tensor is stored.
- ``extra``: the results of the modules' ``get_extra_state()``, by name.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sparseopt.speedup.inference.files.positions import CODES, decode, encode
from sparseopt.utils.errors import CheckpointError

__all__ = ["SparseFile", "SparseWeight", "library"]

_VERSION: Final = "1"
_VALUES: Final = "values"


def library() -> Any:
    """Return ``safetensors``.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("sparse files need safetensors: pip install safetensors") from error
    return safetensors


@dataclass(frozen=True)
class SparseWeight:
    """A weight, as its live values and their positions.

    Attributes:
        shape: the shape of the dense weight.
        positions: positions of the live weights in the flattened weight, ascending.
        values: the values of the live weights, 1-D.
    """

    shape: torch.Size
    positions: Tensor
    values: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the dense weight, with zeros at all other positions."""
        weight = torch.zeros(self.shape.numel(), dtype=dtype)
        weight[self.positions] = self.values.to(dtype)
        return weight.view(self.shape)


class SparseFile:
    """A file that is open for reading, one tensor at a time.

    Args:
        path: the file.

    Attributes:
        shapes: the shapes of the sparse weights, by name.
        aliases: for each further name of a tied tensor, the name under which it is stored.
        extra: extra state of modules that is not a tensor, by name.

    Raises:
        CheckpointError: if the file was not written by ``save_sparse``, has a later version, or is
            damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._file = library().safe_open(str(path), framework="pt")
        except library().SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
        metadata = self._file.metadata() or {}
        version = metadata.get("sparseopt")
        if version != _VERSION:
            raise CheckpointError(
                f"{path} was not written by save_sparse()"
                if version is None
                else f"{path} has version {version} of the format, but this sparseopt reads "
                f"version {_VERSION}: update sparseopt"
            )
        self.shapes: dict[str, torch.Size]
        self.aliases: dict[str, str]
        self.extra: dict[str, Any]
        try:
            shapes, self.aliases = json.loads(metadata["shapes"]), json.loads(metadata["aliases"])
            self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
            self.extra = json.loads(metadata.get("extra", "{}"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: its header can't be read.") from error
        self._keys = set(self._file.keys())

    @property
    def names(self) -> set[str]:
        """The names of the saved state dict."""
        parts = {f"{name}:{part}" for name in self.shapes for part in (*CODES, _VALUES)}
        return (self._keys - parts) | set(self.shapes) | set(self.aliases) | set(self.extra)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def is_sparse(self, name: str) -> bool:
        """Whether the file stores only the live values of a weight."""
        return self.aliases.get(name, name) in self.shapes

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is stored unchanged."""
        tensor: Tensor = self._file.get_tensor(self.aliases.get(name, name))
        return tensor

    def sparse(self, name: str) -> SparseWeight:
        """Return a sparse weight.

        Raises:
            CheckpointError: if its positions or values do not fit its shape.
        """
        name = self.aliases.get(name, name)
        shape = self.shapes[name]
        code = next((code for code in CODES if f"{name}:{code}" in self._keys), None)
        if code is None or f"{name}:{_VALUES}" not in self._keys:
            raise CheckpointError(f"{self.path}: the positions or values of {name!r} are missing")
        try:
            positions = decode(code, self._file.get_tensor(f"{name}:{code}"), shape.numel())
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name!r} is damaged: {error}") from error
        values: Tensor = self._file.get_tensor(f"{name}:{_VALUES}")
        if values.shape != positions.shape:
            raise CheckpointError(
                f"{self.path}: {name!r} has {len(positions)} positions and {len(values)} values"
            )
        return SparseWeight(shape, positions, values)


def write(
    path: str | Path,
    dense: Mapping[str, Tensor],
    sparse: Mapping[str, SparseWeight],
    aliases: Mapping[str, str],
    extra: Mapping[str, Any],
) -> None:
    """Write a file in the format that the docstring of this module describes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in dense.items()}
    for name, weight in sparse.items():
        code, positions = encode(weight.positions, weight.shape.numel())
        tensors[f"{name}:{code}"] = positions
        tensors[f"{name}:{_VALUES}"] = weight.values.detach().cpu().contiguous()
    metadata = {
        "sparseopt": _VERSION,
        "shapes": json.dumps({name: list(weight.shape) for name, weight in sparse.items()}),
        "aliases": json.dumps(dict(aliases)),
        "extra": json.dumps(dict(extra)),
    }
    # The new file replaces an old one only once it is complete. Other processes that have the old
    # file mapped still read the old one.
    target = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        written = Path(folder) / target.name
        library().torch.save_file(tensors, str(written), metadata)
        # safetensors makes files that only their owner may read.
        ordinary = Path(folder) / "ordinary"
        ordinary.touch()
        shutil.copymode(target if target.exists() else ordinary, written)
        written.replace(target)
