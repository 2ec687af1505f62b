"""This machine's processor, and the instruction sets that it can run."""

import platform
import sys
from pathlib import Path

__all__ = ["processor_facts", "supported_variants"]

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
    facts = processor_facts()
    # The line is "flags" on x86 and "Features" on ARM.
    flags = frozenset(facts.get("flags", facts.get("Features", "")).split())
    supported = [v for v in candidates.get(platform.machine(), ()) if _NEEDED[v] <= flags]
    # On Intel's cores a bfloat16 instruction takes as long as several float multiply-adds, and on
    # AMD's as long as one.
    if facts.get("vendor_id") == "GenuineIntel":
        supported.sort(key=lambda variant: variant != "avx512_bf16_dots")
    return tuple(supported)


def processor_facts() -> dict[str, str]:
    """Return Linux's facts about the first processor, by name; empty on other systems."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
