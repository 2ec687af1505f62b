"""The conditions of a run: processor, instructions, threads, versions, memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys

import torch

from benchmarks.common.environment import processor_name
from benchmarks.speed.records import Record
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build
from sparseopt.speedup.kernels.cpu import processor_facts

#: Libraries that take part where they are installed.
PEER_PACKAGES = ("sparselab", "sparseprop")
FLAGS = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"}
#: Kinds of processors whose results stay apart: see ``kind_of``.
ORDINARY, AMX, AVX2, INTEL = "", "amx", "avx2", "intel"
#: How pages call processors of the kind ``AVX2``.
WITHOUT_AVX512 = "with AVX2 but without AVX-512"


def about_machine(threads: int) -> Record:
    """The conditions of results: results of another machine are never continued."""
    return {
        "kernels": build.source_hash(),
        "variant": kernels.variant(),
        "clock": "thread" if threads == 1 else "wall",
        "threads": threads,
        "machine": {
            "processor": processor_name(),
            "generation": _generation(),
            "cores": os.cpu_count(),
            "flags": _flags(),
            "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "native"),
        },
        "versions": {"torch": torch.__version__, **_peer_versions(), **_built_with()},
    }


def kind_of(about: Record) -> str:
    """The instructions that set a processor apart from an ordinary one.

    Returns:
        ``AMX`` if dense code could use AMX, which multiplies bfloat16 matrices much faster;
        ``AVX2`` if the processor has no AVX-512, and so no bfloat16 instructions; ``INTEL`` if it
        is Intel's without AMX, whose bfloat16 instructions are slow; the name of a restriction to
        fewer instructions; ``ORDINARY`` for all other processors.
    """
    isa, flags = about["machine"]["isa"], set(about["machine"]["flags"])
    if isa != "native":
        return f"restricted-to-{isa.lower()}"
    if "amx_bf16" in flags:
        return AMX
    if "avx2" in flags and "avx512f" not in flags:
        return AVX2
    return INTEL if about["machine"]["processor"].startswith("Intel") else ORDINARY


def file_suffix(about: Record) -> str:
    """The part of a file's name for processors that are not ordinary, and for more threads."""
    parts = list(filter(None, [kind_of(about)]))
    if about["threads"] > 1:
        parts.append(f"{about['threads']}-threads")
    return "".join(f"-{part}" for part in parts)


def _generation() -> str:
    """Family and model; in virtual machines, processors of all generations may have one name."""
    found = processor_facts()
    numbers = (found.get("cpu family", ""), found.get("model", ""))
    return "family {}, model {}".format(*numbers) if all(numbers) else ""


def _flags() -> list[str]:
    found = processor_facts()
    return sorted(FLAGS & set((found.get("flags") or found.get("Features", "")).split()))


def _peer_versions() -> dict[str, str]:
    found = {}
    for package in PEER_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _built_with() -> dict[str, str]:
    """The versions of the libraries behind torch's dense code."""
    lines = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    names = {"oneDNN": "Intel(R) MKL-DNN", "MKL": "Intel(R) oneAPI Math Kernel Library"}
    return {
        name: next((line for line in lines if line.startswith(start)), "none")
        for name, start in names.items()
    }


def keep_freed_memory() -> None:
    """Make malloc keep freed memory, for dense code and for ours.

    Otherwise every large result is mapped again, and page faults hide the cost of a layer.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
