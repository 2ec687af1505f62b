"""Versions and hardware, as they are written beside every result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import sparseopt

REPOSITORY = Path(__file__).resolve().parents[2]


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions, processor, device, threads and git commit; no names of folders or hosts.

    Args:
        device: What is trained on.
        processes: How many train one network together.
    """
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "sparseopt": sparseopt.__version__,
        "git_commit": git_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
    return environment if processes == 1 else {**environment, "processes": processes}


def in_words(environment: dict[str, Any]) -> str:
    """What ``describe_environment`` returned, in a line."""
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("sparseopt", "torch", "numpy", "python")
    )
    commit = environment["git_commit"] or "unknown"
    processes = environment.get("processes", 1)
    each = "" if processes == 1 else f" in each of {processes} processes"
    return (
        f"{versions}; commit {commit}; {environment['processor']}, {environment['threads']} threads"
        f"{each}, on {environment['device']}"
    )


def processor_name() -> str:
    """The processor's marketing name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` if files differ from it; None without git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
