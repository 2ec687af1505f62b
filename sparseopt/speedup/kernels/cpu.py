"""The instruction sets that this machine's processor can run."""

import platform
import sys
from pathlib import Path

__all__ = ["supported_variants"]

CPUINFO = Path("/proc/cpuinfo")

# These are the names of the Linux kernel.
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_NEEDED: dict[str, frozenset[str]] = {
    "avx512_bf16": _AVX512 | {"avx512_bf16"},
    "avx512_bf16_dots": _AVX512 | {"avx512_bf16"},
    "avx512": _AVX512,
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "neon": frozenset({"asimd"}),
}


def supported_variants(candidates: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the candidates for this kind of machine that its processor can run, best first.

    Args:
        candidates: Instruction sets by machine, such as ``{"x86_64": ("avx512", "avx2")}``.
    """
    if sys.platform != "linux":
        return ()
    facts = _facts(CPUINFO)
    # The line is "flags" on x86 and "Features" on ARM.
    flags = frozenset(facts.get("flags", facts.get("Features", "")).split())
    supported = [v for v in candidates.get(platform.machine(), ()) if _NEEDED[v] <= flags]
    # On Intel's cores a bfloat16 instruction takes as long as several float multiply-adds, and on
    # AMD's as long as one.
    if facts.get("vendor_id") == "GenuineIntel":
        supported.sort(key=lambda variant: variant != "avx512_bf16_dots")
    return tuple(supported)


def _facts(cpuinfo: Path) -> dict[str, str]:
    """Return what the system says about the first processor, by name."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts
