"""Versions and hardware, as they are written beside every result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import sparseopt
from benchmarks.common.tables import paragraph
from benchmarks.common.words import counted
from sparseopt.speedup.kernels.cpu import processor_facts

REPOSITORY = Path(__file__).resolve().parents[2]


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor, threads, git commit and device; no names of folders or hosts."""
    return {
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


def in_words(environment: dict[str, Any]) -> str:
    """The result of ``describe_environment`` in one line."""
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("sparseopt", "torch", "numpy", "python")
    )
    commit = environment["git_commit"] or "unknown"
    return f"{versions}; commit {commit}; {_hardware(environment)}"


def machines(environments: Iterable[dict[str, Any]]) -> str:
    """The machines on which figures were measured, in a phrase."""
    found = (f"{_hardware(about)}, torch {about['torch']}" for about in environments)
    return "; ".join(dict.fromkeys(found))


def measured_on(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A paragraph that names the places where things were measured.

    If there are several places, it names the things of each.

    Args:
        pairs: Pairs of a thing and its place.
    """
    things: dict[str, list[str]] = {}
    for thing, place in pairs:
        things.setdefault(place, []).append(thing)
    if len(things) == 1:
        return paragraph(f"On {next(iter(things))}.")
    each = (f"{', '.join(those)} on {place}" for place, those in things.items())
    return paragraph(f"Measured with {'; '.join(each)}.") if things else []


def _hardware(environment: dict[str, Any]) -> str:
    threads = environment["threads"]
    return f"{environment['processor']}, {counted(threads, 'thread')}, on {environment['device']}"


def processor_name() -> str:
    """The processor's marketing name and its family, where the system provides them."""
    facts = processor_facts()
    if "model name" in facts:
        family = facts.get("cpu family")
        # The names in virtual machines lack the number that distinguishes generations.
        return facts["model name"] + (f" (family {family})" if family else "")
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
