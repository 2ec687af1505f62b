"""The instruction sets that this machine's processor can run."""

import platform
import sys
from pathlib import Path

__all__ = ["supported_variants"]

CPUINFO = Path("/proc/cpuinfo")

# These are the names of the Linux kernel.
_NEEDED: dict[str, frozenset[str]] = {
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "neon": frozenset({"asimd"}),
}


def supported_variants(candidates: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the candidates for this kind of machine that its processor can run, in their order.

    Args:
        candidates: Instruction sets by machine, such as ``{"x86_64": ("avx512", "avx2")}``.
    """
    if sys.platform != "linux":
        return ()
    flags = _flags(CPUINFO)
    return tuple(v for v in candidates.get(platform.machine(), ()) if _NEEDED[v] <= flags)


def _flags(cpuinfo: Path) -> frozenset[str]:
    """Return the flags of the first processor; the line is "flags" on x86 and "Features" on ARM."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()
