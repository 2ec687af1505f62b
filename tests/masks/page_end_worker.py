"""Copies of live entries between tensors that end where the next page must not be touched.

`python -m tests.masks.page_end_worker THREADS` compares with an index of all live entries. A read
or write past the end of a tensor ends the process.
"""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

from sparseopt.masks.live_copies import word_bits
from sparseopt.speedup.kernels import live_copies

SIZES = (1, 63, 64, 65, 127, 129, 1000, 4097)
DENSITIES = (0.02, 0.5, 1.0)
DTYPES = (torch.int16, torch.int32, torch.int64)
areas: list[mmap.mmap] = []


def at_a_page_end(values: Tensor) -> Tensor:
    """A copy whose last entry ends its page; the next page is not readable."""
    size = values.numel() * values.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, pages + mmap.PAGESIZE)
    areas.append(area)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(start + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(area, dtype=values.dtype, count=values.numel(), offset=pages - size)
    return copy.copy_(values)


def main() -> None:
    threads = int(sys.argv[1])
    live_copies.threads = lambda work: threads
    copies = live_copies.find_live_copies()
    assert copies is not None
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for size in SIZES:
            for density in DENSITIES:
                mask = torch.rand(size, generator=generator) < density
                mask[-1] = True
                values = torch.randint(1, 99, (2, size), generator=generator, dtype=dtype)
                one, other = map(at_a_page_end, values)
                bits = at_a_page_end(word_bits(mask))
                live, other_live = (at_a_page_end(one[mask] * 0) for _ in range(2))
                copies.gather(bits, one, live, other, other_live)
                assert torch.equal(live, one[mask])
                assert torch.equal(other_live, other[mask])
                copies.keep(bits, one)
                assert torch.equal(one, values[0] * mask)
                copies.write(bits, live, other)
                assert torch.equal(other, values[0] * mask)


if __name__ == "__main__":
    main()
