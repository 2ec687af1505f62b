"""Counting the multiplications by weights in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparseopt.discovery import canonical_name

__all__ = ["Operations", "count_operations"]

aten = torch.ops.aten


class Operations:
    """FLOPs of one forward pass, by parameter name; ``total`` of a parameter includes biases.

    Attributes:
        dense: for each parameter, FLOPs with every weight live.
        sparse: for each parameter, FLOPs with its mask.
        unnamed: FLOPs of convolutions whose weight is no parameter (computed weights).
    """

    def __init__(self) -> None:
        self.dense: dict[str, float] = {}
        self.sparse: dict[str, float] = {}
        self.bias: dict[str, float] = {}
        self.unnamed = 0.0

    def add(self, name: str, *, dense: float, sparse: float, bias: float) -> None:
        """Add one operation."""
        self.dense[name] = self.dense.get(name, 0.0) + dense
        self.sparse[name] = self.sparse.get(name, 0.0) + sparse
        self.bias[name] = self.bias.get(name, 0.0) + bias


def count_operations(
    model: nn.Module,
    masks: Mapping[nn.Parameter, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Operations:
    """Run ``model`` once, in eval mode, and count convolutions and linear maps.

    An operation counts if one operand is a weight of the model: the same memory, or a view or a
    cast of it. So modules used twice, parts of a packed projection and functional calls on a
    parameter count right, and products of two activations don't count. A convolution takes
    ``2 * positions * live`` FLOPs, a linear map ``2 * rows * live`` and one addition per row and
    output feature for its bias.

    The model is left as it was: training modes, buffers and random state are restored.

    Args:
        model: the model.
        masks: for each sparse weight, its bool mask in the weight's memory layout.
        args: positional inputs.
        kwargs: keyword inputs.
    """
    counter = _Counter(model, masks)
    eagerly = torch.compiler.set_stance("force_eager")
    with _undisturbed(model), torch.no_grad(), eagerly, counter:
        model(*args, **kwargs)
    return counter.operations


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            # The fused kernel would hide the projections.
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, saved in buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator, and knows weights by the memory they lie in."""

    def __init__(self, model: nn.Module, masks: Mapping[nn.Parameter, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = Operations()
        self._masks = masks
        self._weights: dict[int, list[tuple[str, nn.Parameter]]] = {}
        self._biased: set[str] = set()
        # Casts of weights, kept alive so that no other tensor takes their address.
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                address = parameter.untyped_storage().data_ptr()
                self._weights.setdefault(address, []).append((canonical_name(name), parameter))
            if name.endswith("bias"):
                # "fc.bias" goes with "fc.weight", "attention.in_proj_bias" with "..._weight".
                self._biased.add(canonical_name(name.removesuffix("bias") + "weight"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in (aten.convolution, aten._convolution):
            self._convolution(args[0], args[1], out, transposed=bool(args[6]))
        elif packet is aten.mm:
            self._matmul(args[0], args[1], biased=False)
        elif packet is aten.addmm:
            self._matmul(args[1], args[2], biased=True)
        elif packet is aten.bmm:
            self._matmul(args[0], args[1], biased=False)
        elif packet in (aten._to_copy, aten.clone):
            self._cast(args[0], out)
        return out

    def _convolution(self, x: Tensor, weight: Tensor, out: Tensor, *, transposed: bool) -> None:
        positions = x.shape[0] * math.prod((x if transposed else out).shape[2:])
        found = self._find(weight)
        if found is None:
            self.operations.unnamed += 2.0 * positions * weight.numel()
            return
        name, live = found
        self.operations.add(
            name,
            dense=2.0 * positions * weight.numel(),
            sparse=2.0 * positions * live,
            bias=0.0,
        )

    def _matmul(self, left: Tensor, right: Tensor, *, biased: bool) -> None:
        for weight, other, axis in ((right, left, -2), (left, right, -1)):
            found = self._find(weight)
            if found is None:
                continue
            name, live = found
            rows = math.prod(other.shape[:-2]) * other.shape[axis]
            features = weight.shape[-1 if axis == -2 else -2]
            has_bias = biased or name in self._biased
            self.operations.add(
                name,
                dense=2.0 * rows * weight.numel() / math.prod(weight.shape[:-2]),
                sparse=2.0 * rows * live / math.prod(weight.shape[:-2]),
                bias=float(rows * features) if has_bias else 0.0,
            )
            return

    def _cast(self, source: Tensor, out: Tensor) -> None:
        if (
            self._owner(source) is not None
            and source.shape == out.shape
            and source.stride() == out.stride()
        ):
            self._casts[out.untyped_storage().data_ptr()] = (out, source)

    def _find(self, operand: Tensor) -> tuple[str, float] | None:
        """Return the name of the weight that ``operand`` is a view of, and its live entries."""
        owner = self._owner(operand)
        if owner is None:
            return None
        name, weight, offset = owner
        mask = self._masks.get(weight)
        if mask is None:
            return name, operand.numel()
        part = mask.as_strided(operand.shape, operand.stride(), offset)
        return name, float(part.sum())

    def _owner(self, operand: Tensor) -> tuple[str, nn.Parameter, int] | None:
        address = operand.untyped_storage().data_ptr()
        if address in self._casts:
            cast, source = self._casts[address]
            owner = self._owner(source)
            if owner is None:
                return None
            name, weight, offset = owner
            return name, weight, offset + int(operand.storage_offset() - cast.storage_offset())
        for name, weight in self._weights.get(address, ()):
            offset = int(operand.storage_offset() - weight.storage_offset())
            if 0 <= offset < weight.numel():
                return name, weight, offset
        return None
