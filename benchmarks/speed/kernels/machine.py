"""The conditions of a run: processor, instructions, threads, versions, memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path

import torch

from benchmarks.common.environment import processor_name
from benchmarks.speed.records import Record
from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build

#: Libraries that take part where they are installed.
PEER_PACKAGES = ("sparselab", "sparseprop")
FLAGS = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"}


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


def has_amx(about: Record) -> bool:
    """Whether dense code could use AMX, which multiplies bfloat16 matrices much faster."""
    machine = about["machine"]
    return machine["isa"] == "native" and "amx_bf16" in machine["flags"]


def file_suffix(about: Record) -> str:
    """The part of a file's name for results with AMX, with fewer instructions, or more threads."""
    isa = about["machine"]["isa"]
    parts = [] if isa == "native" else [isa.lower()]
    if has_amx(about):
        parts.append("amx")
    if about["threads"] > 1:
        parts.append(f"{about['threads']}-threads")
    return "".join(f"-{part}" for part in parts)


def _cpuinfo() -> dict[str, str]:
    """Linux's facts about the first processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _generation() -> str:
    """Family and model; in virtual machines, processors of all generations may have one name."""
    found = _cpuinfo()
    numbers = (found.get("cpu family", ""), found.get("model", ""))
    return "family {}, model {}".format(*numbers) if all(numbers) else ""


def _flags() -> list[str]:
    found = _cpuinfo()
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
