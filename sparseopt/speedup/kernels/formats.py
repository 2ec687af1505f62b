"""The lists of a layer's live weights that the kernels read."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseopt.speedup.kernels.library import library, raise_if

__all__ = ["LiveLists", "count_live", "layer_struct"]

_TAPS = 1 << 12
_CHANNELS = 1 << 20
_SHORT = 1 << 16
_LARGEST = 2**31 - 1
_NO_PLACES = 2  # the library's error code for wrong positions


@functools.lru_cache(maxsize=4096)
def _struct(layout: tuple[int, ...]) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * 11)(*layout)


def layer_struct(layout: Sequence[int]) -> ctypes.Array[ctypes.c_int]:
    """Return the ``Layer`` of kernels.cpp for the integers of :attr:`LiveLists.layout`."""
    return _struct(tuple(layout))


def _fixed_size(layout: Sequence[int]) -> int:
    return layout[0] + 2 + layout[4] * layout[5] * layout[1]


def _size(live: int, layout: Sequence[int]) -> int:
    return _fixed_size(layout) + 3 * live + ((live + 1) // 2 if _has_short_channels(layout) else 0)


def count_live(lists: Tensor, layout: Sequence[int]) -> int:
    """Return the number of live weights in the tensor of a :class:`LiveLists`."""
    size = lists.shape[0] - _fixed_size(layout)
    return size * 2 // 7 if _has_short_channels(layout) else size // 3


def _has_short_channels(layout: Sequence[int]) -> bool:
    """Whether the lists hold the input channels in 16 bits too."""
    # Programs that were exported before lists had short channels have a layout of ten integers.
    return any(layout[10:])


def _pair(value: int | Sequence[int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be one or two integers of at least {least}, not {value!r}")
    return pair[0], pair[1]


class LiveLists:
    """The live weights of one layer, listed by output and by input.

    The lists take 12 bytes for each live weight. The lists of a linear layer with at most 65,536
    inputs take 14 bytes, because they hold each input once more in 16 bits: for one token, reading
    the lists is much of the work. Lists are made again only when the version of the mask changes.

    Args:
        shape: The shape of the weight: ``(out, in)`` of a linear layer,
            ``(out, in, height, width)`` of a convolution.
        stride: The stride of the convolution; one number or (height, width).
        padding: Zeros around the map, the same on opposite sides; one number or (height, width).
        dilation: The dilation of the convolution; one number or (height, width).

    Attributes:
        layout: The shape, stride, padding and dilation as ten integers, and 1 if the lists hold
            the inputs in 16 bits too, else 0.
        tensor: The lists: one int32 tensor on the CPU.
        version: The version of the mask in the lists; ``None`` before the first mask.

    Raises:
        ValueError: If the kernels do not support the shape or a setting.

    Example:
        >>> import torch
        >>> from sparseopt.speedup import kernels
        >>> lists = kernels.LiveLists((2, 3))
        >>> if kernels.available():
        ...     lists.update(torch.tensor([0, 4]), version=1)
        ...     y = kernels.linear(torch.ones(1, 3), torch.full((2, 3), 5.0), None, lists)
        ...     assert y.tolist() == [[5.0, 5.0]]
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        shape = tuple(shape)
        if len(shape) not in {2, 4} or min(shape) < 1:
            raise ValueError(f"shape must be (out, in) or (out, in, height, width), not {shape}")
        out, channels, height, width = shape if len(shape) == 4 else (*shape, 1, 1)
        if height * width > _TAPS or max(out, channels) > _CHANNELS:
            raise ValueError(
                f"shape must have at most {_TAPS} taps and {_CHANNELS} channels, not {shape}"
            )
        self.shape: tuple[int, ...] = shape
        self.layout: list[int] = [
            *(out, channels, height, width),
            *_pair(stride, "stride", 1),
            *_pair(padding, "padding", 0),
            *_pair(dilation, "dilation", 1),
            int(len(shape) == 2 and channels <= _SHORT),
        ]
        self.tensor: Tensor = torch.zeros(_size(0, self.layout), dtype=torch.int32, device="cpu")
        self.version: int | None = None
        self._cached: tuple[tuple[object, ...], Tensor] | None = None

    @property
    def live(self) -> int:
        """The number of live weights."""
        return count_live(self.tensor, self.layout)

    def update(self, positions: Tensor, version: int) -> None:
        """List these weights, unless the lists have this version already.

        Args:
            positions: The positions of live weights in the flattened (row-major) weight: 1-D,
                integers, ascending.
            version: A number that changes whenever the mask does.

        Raises:
            ValueError: If positions are not 1-D, not ascending, or outside the weight.
            TypeError: If positions are not integers.
        """
        if version == self.version:
            return
        if positions.dtype not in {torch.int64, torch.int32}:
            raise TypeError(f"positions must be int64 or int32, not {positions.dtype}")
        if positions.dim() != 1 or positions.shape[0] > _LARGEST:
            raise ValueError(
                f"positions must have one dimension of at most {_LARGEST} entries, "
                f"not the shape {tuple(positions.shape)}"
            )
        positions = positions.detach().to("cpu", torch.int64).contiguous()
        live = positions.shape[0]
        # Always a new tensor: a graph that waits for its backward pass keeps the old lists.
        tensor = torch.empty(_size(live, self.layout), dtype=torch.int32, device="cpu")
        failed = library().sparseopt_build(
            positions.data_ptr(), tensor.data_ptr(), live, layer_struct(self.layout)
        )
        if failed == _NO_PLACES:
            raise ValueError(
                f"positions must be ascending and below {torch.Size(self.shape).numel()}, the "
                f"number of weights of the shape {self.shape}"
            )
        raise_if(failed)
        self.tensor, self.version, self._cached = tensor, version, None

    def cached(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return the cached values of this key and mask version, or make and cache them."""
        cached = self._cached
        if cached is None or cached[0] != key:
            cached = self._cached = (key, make())
        return cached[1]

    def forget_values(self) -> None:
        """Forget the weights that are cached for inference.

        This is needed only after a write that does not raise the weight's version: through
        ``.data``, or from outside torch.
        """
        self._cached = None
