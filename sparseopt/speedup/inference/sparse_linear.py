"""Linear layers that store and multiply live weights only."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CSRLinear", "CondensedLinear", "autocast_type", "is_constant_fan_in"]


class _SparseLinear(nn.Module):
    """The base of both layers: live values, bias, and the dtype and shape of results.

    Args:
        weight: the dense weight, ``(out_features, in_features)``.
        values: the live values of the weight.
        bias: ``(out_features,)``, or ``None``.
    """

    def __init__(self, weight: Tensor, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.values: Tensor
        self.bias: Tensor | None
        self.register_buffer("values", values)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the keyword of nn.Linear
        """Return ``(..., out_features)`` for ``(..., in_features)``."""
        return _as_under_autocast(self._compute, input, self.values)

    def _compute(self, x: Tensor) -> Tensor:
        found = self._product(x.reshape(-1, self.in_features).t())
        if self.bias is not None:
            found = found + self.bias
        return found.reshape(*x.shape[:-1], self.out_features)

    def _product(self, inputs: Tensor) -> Tensor:
        """Return ``(samples, out_features)`` for ``(in_features, samples)``."""
        raise NotImplementedError


class CondensedLinear(_SparseLinear):
    """A linear layer with constant fan-in: all neurons have equally many live weights, or none.

    It stores ``neurons x fan-in`` values and as many indices. A neuron without live weights is not
    computed; its result is the bias. The layer is for inference: its values are buffers, and are
    not trained. Under autocast the result has the dtype of a result of ``nn.Linear``, but is
    computed in the dtype of the values.

    Args:
        weight: the dense weight, ``(out_features, in_features)``.
        mask: bool, in the shape of the weight. All rows have equally many true entries, or none.
        bias: ``(out_features,)``, or ``None``.

    Raises:
        ValueError: if the fan-in is not constant.

    Reference: Lasby et al. 2024, "Dynamic Sparse Training with Structured Sparsity".

    Example:
        >>> import torch
        >>> from sparseopt import CondensedLinear
        >>> weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
        >>> layer = CondensedLinear(weight, weight != 0, None)
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[201.0, 0.0, 430.0]]
    """

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
        if not is_constant_fan_in(mask):
            raise ValueError(
                "mask has rows with different numbers of live weights, but a condensed layer needs "
                "constant fan-in, as in models that method='srigl' has trained."
            )
        neurons = mask.any(1).nonzero()[:, 0]
        fan_in = int(mask.sum(1).max())
        indices = mask[neurons].nonzero()[:, 1].view(len(neurons), fan_in)
        super().__init__(weight, weight.detach()[neurons].gather(1, indices), bias)
        self.indices: Tensor
        self.neurons: Tensor
        self.register_buffer("indices", indices)
        self.register_buffer("neurons", neurons)

    def _product(self, inputs: Tensor) -> Tensor:
        if len(self.neurons) == 0:
            return inputs.new_zeros(inputs.shape[1], self.out_features)
        # A neuron is the sum of the rows of the input at its indices, times its values.
        found = F.embedding_bag(
            self.indices, inputs.contiguous(), per_sample_weights=self.values, mode="sum"
        ).t()
        if len(self.neurons) == self.out_features:
            return found
        return found.new_zeros(len(found), self.out_features).index_copy(1, self.neurons, found)

    def extra_repr(self) -> str:
        """Return the text between the brackets of the layer's ``repr()``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"neurons={len(self.neurons)}, fan_in={self.indices.shape[1]}"
        )


class CSRLinear(_SparseLinear):
    """A linear layer whose weight is stored in compressed sparse rows, for any mask.

    The layer is for inference: its weight is a buffer, and is not trained. Under autocast the
    result has the dtype of a result of ``nn.Linear``, but is computed in the dtype of the values.
    On a CPU values in half precision are multiplied in float32, because torch multiplies them in
    no other way.

    Args:
        weight: the dense weight, ``(out_features, in_features)``. Weights that the mask drops have
            to be zero.
        mask: bool, in the shape of the weight.
        bias: ``(out_features,)``, or ``None``.

    Example:
        >>> import torch
        >>> from sparseopt import CSRLinear
        >>> weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
        >>> layer = CSRLinear(weight, weight != 0, None)
        >>> layer(torch.tensor([[1.0, 10.0, 100.0]])).tolist()
        [[201.0, 0.0, 30.0]]
    """

    def __init__(self, weight: Tensor, mask: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, weight.detach()[mask], bias)
        rows = torch.zeros(self.out_features + 1, dtype=torch.int64, device=weight.device)
        rows[1:] = mask.sum(1).cumsum(0)
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", rows)
        self.register_buffer("columns", mask.nonzero()[:, 1])

    def _product(self, inputs: Tensor) -> Tensor:
        if self.values.is_cpu and self.values.dtype in (torch.bfloat16, torch.float16):
            return self._multiply(self.values.float(), inputs.float()).to(self.values.dtype)
        return self._multiply(self.values, inputs)

    def _multiply(self, values: Tensor, inputs: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # torch warns that all CSR tensors are in beta state.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            weight = torch.sparse_csr_tensor(
                self.rows,
                self.columns,
                values,
                (self.out_features, self.in_features),
                check_invariants=False,
            )
        return (weight @ inputs).t()

    def extra_repr(self) -> str:
        """Return the text between the brackets of the layer's ``repr()``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"live={len(self.values)}"
        )


def is_constant_fan_in(mask: Tensor) -> bool:
    """Return whether all rows of a mask have equally many live weights, or none."""
    counts = set(mask.sum(1).tolist())
    return len(counts - {0}) <= 1


def autocast_type(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast computes ``F.linear``, or ``None`` if it does not."""
    if x.is_cpu and not torch.is_autocast_enabled("cpu"):  # the usual case, without more calls
        return None
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    # Autocast does not convert float64.
    if torch.float64 in (x.dtype, weight.dtype):
        return None
    return torch.get_autocast_dtype(device)


def _as_under_autocast(product: Callable[[Tensor], Tensor], x: Tensor, values: Tensor) -> Tensor:
    dtype = autocast_type(x, values)
    if dtype is None:
        return product(x)
    # Autocast supports few sparse operations, and few of them have half precision on the CPU.
    with torch.autocast(x.device.type, enabled=False):
        return product(x.to(values.dtype)).to(dtype)
